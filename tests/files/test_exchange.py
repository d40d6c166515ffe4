"""Two folders swap names in one step; a name that is taken stays taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moec.files import exchange as module
from moec.files.exchange import exchange, move


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the call")
def test_two_folders_swap(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", "1"), folder(tmp_path / "other", "2")
    assert exchange(one, other)
    assert ((one / "file").read_text(), (other / "file").read_text()) == ("2", "1")
    with pytest.raises(FileNotFoundError):
        exchange(one, tmp_path / "nowhere")


@pytest.mark.parametrize("has_call", [True, False])
def test_a_free_name_is_given_and_a_taken_one_is_not(
    has_call: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_call:
        monkeypatch.setattr(module, "_rename", lambda source, target, flag: False)
        assert not exchange(tmp_path, tmp_path)
    new = folder(tmp_path / "new", "new")
    (tmp_path / "empty").mkdir()
    for taken in (folder(tmp_path / "taken", "old"), tmp_path / "empty"):
        with pytest.raises(FileExistsError):
            move(new, taken)
    move(new, tmp_path / "free")
    assert (tmp_path / "free" / "file").read_text() == "new" and not new.exists()
