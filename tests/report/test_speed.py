"""Measurements are kept with the engine that they are of, and nobody's file is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moec.report.artefacts import SPEED_FILE, Artefact, hash_artefacts
from moec.report.speed import Phase, Speed, is_speed_file, read_speeds, speeds_with

SPEED = Speed(
    "text", "batch 1, 8 + 2 tokens", 2, 1, "A processor, 2 cores", {"torch": "2"}, 1, "2026-01-02T03:04:05+00:00",
    30 * 2**20, 400 * 2**20,
    {"prefill": Phase(20.0, 21.0, 22.0, 400.0, (19.0, 21.0)), "decode": Phase(10.0, 11.0, 12.0, 100.0, (9.0, 11.0))},
)  # fmt: skip
FILES = (Artefact("model.onnx", "ab", 1),)


def keep(folder: Path, speed: Speed, files: tuple[Artefact, ...] = FILES) -> None:
    (folder / SPEED_FILE).write_text(speeds_with(speed, folder, files))


def test_a_measurement_is_read_back(tmp_path: Path) -> None:
    assert read_speeds(tmp_path, FILES) == ()
    keep(tmp_path, SPEED)
    assert read_speeds(tmp_path, FILES) == (SPEED,) and is_speed_file(tmp_path)


def test_the_newest_of_each_kind_stays(tmp_path: Path) -> None:
    later, other = replace(SPEED, at="2026-02-02T03:04:05+00:00"), replace(SPEED, machine="Another, 8 cores")
    for speed in (SPEED, other, later):
        keep(tmp_path, speed)
    assert read_speeds(tmp_path, FILES) == (later, other)


def test_times_of_another_engine_count_no_more(tmp_path: Path) -> None:
    keep(tmp_path, SPEED)
    built_anew = (Artefact("model.onnx", "cd", 1),)
    assert read_speeds(tmp_path, built_anew) == ()
    keep(tmp_path, SPEED, built_anew)
    assert read_speeds(tmp_path, built_anew) == (SPEED,)


def test_a_file_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / SPEED_FILE).write_text('{"mine": 1}')
    assert read_speeds(tmp_path, FILES) == () and not is_speed_file(tmp_path)
    with pytest.raises(FileExistsError):
        speeds_with(SPEED, tmp_path, FILES)


def test_times_are_no_part_of_the_engine(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"1")
    before = hash_artefacts(tmp_path)
    keep(tmp_path, SPEED, before)
    assert hash_artefacts(tmp_path) == before


@pytest.mark.parametrize("phases", [{}, {"decode": Phase(1.0, 1.0, 1.0, 1.0)}, {"forward": Phase(0.0, 1.0, 1.0, 1.0)}])
def test_what_nobody_measured_is_not_shown(phases: dict[str, Phase], tmp_path: Path) -> None:
    kind = "forward" if "forward" in phases else "text"
    (tmp_path / SPEED_FILE).write_text(speeds_with(replace(SPEED, kind=kind, phases=phases), tmp_path, FILES))
    assert read_speeds(tmp_path, FILES) == () and not is_speed_file(tmp_path)
