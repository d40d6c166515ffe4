"""A new file is never one that was there."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.files.fresh import write_new, write_over


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


@contextmanager
def room(size: int) -> Iterator[None]:
    """The system lets no file of this process grow beyond `size` bytes, as on a disk that is nearly full."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize("text", ["x" * 100_000, "x" * 100_000 + "\udc80"])
def test_nothing_is_left_of_a_file_that_has_no_room_or_no_encoding(text: str, tmp_path: Path) -> None:
    with room(4096), pytest.raises((MoecError, UnicodeEncodeError)):
        write_new(tmp_path / "a.txt", text, "make room")
    assert not list(tmp_path.iterdir())
    write_new(tmp_path / "a.txt", "again", "")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may write to, used by somebody for whom write protection holds: for root it does not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


def test_a_file_that_the_user_write_protected_stays(open_folder: Path) -> None:
    file = open_folder / "a.txt"
    file.write_text("mine")
    file.chmod(0o444)
    with pytest.raises(PermissionError):
        write_over(file, "theirs")
    assert file.read_text() == "mine" and list(open_folder.iterdir()) == [file]
    file.chmod(0o644)
    write_over(file, "theirs")
    assert file.read_text() == "theirs"


def test_a_file_keeps_its_other_names(tmp_path: Path) -> None:
    file, other = tmp_path / "a.txt", tmp_path / "b.txt"
    file.write_text("what was there before")
    other.hardlink_to(file)
    write_over(file, "nöw\n")
    assert other.read_text(encoding="utf-8") == "nöw\n" and other.samefile(file)
    for text in ("x" * 100_000, "\udc80"):
        with room(4096), pytest.raises((OSError, UnicodeEncodeError)):
            write_over(file, text)
    assert other.read_bytes() == "nöw\n".encode() and len(list(tmp_path.iterdir())) == 2
    os.truncate(file, 0)
    write_over(file, "again")
    assert other.read_text() == "again"


def test_where_nothing_new_may_lie_a_file_is_written_in_place(open_folder: Path) -> None:
    file = open_folder / "a.txt"
    file.write_text("before")
    inner = open_folder / "closed"
    inner.mkdir()
    file = file.rename(inner / "a.txt")
    inner.chmod(0o555)
    write_over(file, "after")
    assert file.read_text() == "after"
    with pytest.raises(PermissionError):
        write_over(inner / "b.txt", "new")
    inner.chmod(0o755)
