"""A work folder goes with its process; that of a process that was killed goes with the next one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moec.files import workplace as module
from moec.files.workplace import OLD, abandon, sweep, workplace


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_it_is_beside_and_goes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), workplace(tmp_path / "engine") as place:
        assert place.parent == tmp_path and place.name.startswith(".engine.moec-")
        (place / "file").write_text("x")
        sweep(tmp_path)  # as another process does
        with workplace(tmp_path / "engine") as second:
            assert place.exists() and second != place
        raise KeyboardInterrupt
    assert names(tmp_path) == []


KILLED = """
import os, pathlib, sys
from moec.files.workplace import workplace
with workplace(pathlib.Path(sys.argv[1])) as place:
    (place / "engine").mkdir()
    (place / "engine" / "file").write_text("half")
    if sys.argv[2]:
        pathlib.Path(sys.argv[1]).rename(place / sys.argv[2])
    os._exit(9)
"""


@pytest.mark.parametrize("aside", ["", OLD])
def test_what_a_dead_process_left_is_swept(aside: str, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    out.mkdir()
    (out / "file").write_text("old")
    for other in (".engine.moec-notes", ".thesis", ".x.moec-ABCDEFGH"):
        (tmp_path / other).mkdir()
    assert subprocess.run([sys.executable, "-c", KILLED, str(out), aside]).returncode == 9
    assert len(names(tmp_path)) == (4 if aside else 5)
    sweep(tmp_path)
    assert names(tmp_path) == [".engine.moec-notes", ".thesis", ".x.moec-ABCDEFGH", "engine"]
    assert (out / "file").read_text() == "old"  # also where it had been moved aside


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "file").write_text("years of work")
    (tmp_path / ".engine.moec-abcdef01").symlink_to(tmp_path / "thesis")
    sweep(tmp_path)
    assert (tmp_path / "thesis" / "file").exists()


def test_a_process_that_ends_at_once_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "engine"
    out.mkdir()
    with workplace(out) as place:
        (place / "engine").mkdir()
        out.rename(place / OLD)
        abandon()
        assert names(tmp_path) == ["engine"]


def test_a_system_without_locks_opens_no_folder_and_sweeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fcntl", None)
    monkeypatch.delattr("os.getuid")
    monkeypatch.setattr("shutil._use_fd_functions", False)
    monkeypatch.delattr("os.open")
    with workplace(tmp_path / "engine") as place, workplace(tmp_path / "engine") as second:
        assert place.is_dir() and second.is_dir()
    assert names(tmp_path) == []
