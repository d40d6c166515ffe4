"""A user may be without a home, and everything goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.compiler.staging import check_out
from moec.errors import MoecError
from moec.files import kept
from moec.files.home import cache_home, home


def test_a_home_and_what_programs_keep_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path and cache_home() == tmp_path / ".cache"
    with pytest.raises(MoecError, match="would be lost"):
        check_out(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    assert cache_home() == tmp_path / "kept"


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", kept.FOLDER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert home() is None and cache_home() is None and kept.folder() is None and kept.read("0") is None
    check_out(Path("engine"))
