"""A new file is never one that was there."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.files.fresh import write_new


def test_a_file_is_written(tmp_path: Path) -> None:
    write_new(tmp_path / "a.txt", "äb\n", "")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "äb\n"


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    (tmp_path / "link.txt").symlink_to(tmp_path / "nowhere.txt")
    for name in ("a.txt", "link.txt"):
        with pytest.raises(MoecError, match="something of that name") as caught:
            write_new(tmp_path / name, "theirs", "name another")
        assert caught.value.code == "M210" and caught.value.fix == "name another"
    assert (tmp_path / "a.txt").read_text() == "mine" and not (tmp_path / "nowhere.txt").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="No such file or directory") as caught:
        write_new(tmp_path / "none" / "a.txt", "", "make the folder")
    assert caught.value.code == "M210" and caught.value.where == str(tmp_path / "none" / "a.txt")
