"""A file that changes while it is read is noticed, whatever its clock says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.frontend.snapshot import Snapshot


def rewrite(path: Path) -> None:
    """Other bytes of the same number, and the old time set back."""
    before = path.stat()
    path.write_bytes(b"y" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(path: Path) -> None:
    """Another file in its place, and the first one back again."""
    aside, content = path.with_suffix(".old"), path.read_bytes()
    path.rename(aside)
    path.write_bytes(content)


CHANGES: tuple[Callable[[Path], object], ...] = (rewrite, swap, Path.unlink, lambda p: p.write_bytes(b"longer" * 9))


@pytest.mark.parametrize("size", [20, 2**20 + 1])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: Callable[[Path], object], size: int, tmp_path: Path) -> None:
    path, other = tmp_path / "config.json", tmp_path / "other"
    path.write_bytes(b"x" * size)
    other.write_bytes(b"x")
    found = Snapshot.of([path, other, tmp_path / "none"])
    found.require_unchanged()
    path.read_bytes()
    found.require_unchanged()
    change(path)
    with pytest.raises(MoecError, match="was changed while it was read") as caught:
        found.require_unchanged()
    assert caught.value.code == "M106"


def test_what_comes_to_it_is_noted_then(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("1")
    found = Snapshot.of([first])
    first.write_text("22")
    second.write_text("3")
    more = found.and_of([first, second])
    with pytest.raises(MoecError, match="a was changed"):
        more.require_unchanged()  # as it was at first
    assert set(more.states) == {first, second}
