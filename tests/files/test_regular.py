"""Pipes and devices are no files, and nothing larger than it may be is read."""

from __future__ import annotations

import builtins
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from moec.files.regular import file_hash, open_regular, read_bytes, read_text


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("Grüße", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_text(tmp_path / "link") == "Grüße"
    with open_regular(tmp_path / "file") as file:
        assert file.read(2) == b"Gr"


@pytest.mark.parametrize("name", ["pipe", "folder", "/dev/zero", "nowhere"])
def test_what_is_no_file_is_refused_at_once(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        read_bytes(tmp_path / name)
    assert caught.value.strerror and str(caught.value.filename) == str(tmp_path / name)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes"):
        read_bytes(tmp_path / "file", 4)


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_hash(tmp_path / "file").startswith("ba7816bf8f01cfea")
    with pytest.raises(OSError, match="directory"):
        file_hash(tmp_path)


@pytest.mark.parametrize("owner", [os, builtins])
def test_ctrl_c_right_after_opening_is_no_error_of_the_file(
    owner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is dropped closes its descriptor, which is then not to be closed once more."""
    (tmp_path / "file").write_bytes(b"12345")
    name = "fdopen" if owner is os else "open"
    real = getattr(owner, name)

    def interrupted(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options).fileno()
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    content = b""
    with suppress(KeyboardInterrupt), open_regular(tmp_path / "file") as file:
        content = file.read()
    assert content == (b"" if owner is builtins else b"12345")  # the interrupted one, and the one that is not called
