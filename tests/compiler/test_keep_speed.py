"""A measurement goes into the engine's folder: the page shows it, the manifest stays, and a new engine may take its
place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moec.compiler.keep_speed import keep_speed
from moec.compiler.staging import PAGE, check_out
from moec.errors import MoecError
from moec.report.artefacts import MANIFEST, SPEED_FILE, check_artefacts
from moec.report.report import Report
from tests.report.test_speed import SPEED


@pytest.fixture
def engine(mixtral_engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))


def test_the_page_shows_it_and_the_manifest_stays(engine: Path) -> None:
    before, page = (engine / MANIFEST).read_bytes(), (engine / PAGE).read_text()
    keep_speed(engine, SPEED)
    assert (engine / MANIFEST).read_bytes() == before and "How fast it is" not in page
    assert "How fast it is" in (engine / PAGE).read_text() and SPEED.machine in (engine / PAGE).read_text()
    check_artefacts(Report.read(engine / MANIFEST).artefacts, engine)
    assert sorted(p.name for p in engine.parent.iterdir()) == ["engine"]


def test_a_folder_with_times_is_still_an_engines(engine: Path) -> None:
    keep_speed(engine, SPEED)
    check_out(engine)  # a compile may replace it
    (engine / SPEED_FILE).write_text("mine")
    with pytest.raises(MoecError) as error:
        check_out(engine)
    assert error.value.code == "M210" and SPEED_FILE in error.value.what


def test_a_file_of_somebody_else_is_not_touched(engine: Path) -> None:
    (engine / SPEED_FILE).write_text("mine")
    with pytest.raises(MoecError) as error:
        keep_speed(engine, SPEED)
    assert error.value.code == "M210" and (engine / SPEED_FILE).read_text() == "mine"
    with pytest.raises(MoecError) as error:
        keep_speed(engine.parent, SPEED)
    assert error.value.code == "M201"
