"""`moec probe`, and plans that rest on it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from moec.execution import memory
from moec.planning.probed import keep
from moec.timing import probe
from tests.command_line import Cli
from tests.planning import configs
from tests.planning.records import own_cache, record
from tests.timing.test_probe import TINY


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    own_cache(tmp_path / "cache", monkeypatch)
    return Cli(capsys)


def test_without_a_record_three_lines_say_how_to_get_one(cli: Cli, tmp_path: Path) -> None:
    for command in (["probe", "--show"], ["plan", configs.write(tmp_path, configs.LLAMA_1B), "--device", "cpu"]):
        cli(*command, status=2)
        assert len(cli.err.strip().splitlines()) == 3 and cli.err.splitlines()[2].endswith("moec probe")


def test_a_record_is_shown_and_a_plan_says_that_it_rests_on_it(cli: Cli, tmp_path: Path) -> None:
    keep(record())
    assert cli.json("probe", "--show")["calls"]["token"]["a_call"] == 1.0
    text = cli("probe", "--show")
    assert "20.0 GB/s by 2" in text and "int4 rounded" in text and "probe.json" in text
    small = configs.LLAMA_1B | {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 128}
    free = msgspec.structs.replace(record().experts["int4"], a_weight=(0.0, 3e-9))  # all time went to the calls
    keep(msgspec.structs.replace(record(), experts=record().experts | {"int4": free}))
    assert "–" in next(line for line in cli("probe", "--show").splitlines() if line.startswith("int4 "))
    path = configs.write(tmp_path, small)
    found = cli.json("plan", path, "--device", "cpu", "--context", "20", "--format", "int4")["situations"][0]
    assert "measured here on 2026-01-02" in found["decode_time"]["origin"]
    assert "measured here" in cli("plan", path, "--device", "cpu,h200", "--context", "20")


def test_too_little_memory_is_said_before_anything_is_made(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen engines, each of more than the largest cache: what has to be free goes by that."""
    monkeypatch.setattr(probe, "largest_cache", lambda: 192 * 2**20)
    monkeypatch.setattr(memory, "available_bytes", lambda: 5 * 2**30)
    cli("probe", status=3)
    assert "M302" in cli.err and "5.00 GiB" in cli.err


@pytest.mark.repeats
def test_it_measures_and_keeps_what_it_found(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "Sizes", lambda: TINY)  # the minute that it takes otherwise
    assert "kept in" in cli("probe")
    assert set(cli.json("probe", "--show")["products"]) == {"fp32", "int4"}
