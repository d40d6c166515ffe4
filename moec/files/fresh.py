"""Files of the user: written whole or not at all, and new ones never over one that is there."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from io import RawIOBase
from pathlib import Path

from moec.errors import MoecError


def write_new(path: Path, text: str, otherwise: str) -> None:
    """Write a text into a file that is not there yet.

    Args:
        otherwise: what the user can do where it cannot be written.

    Raises:
        MoecError: M210 when something has that name, or nothing can be written there.
    """
    made: os.stat_result | None = None
    try:
        with path.open("x", encoding="utf-8") as file:
            made = os.fstat(file.fileno())
            file.write(text)
    except FileExistsError:
        raise MoecError("M210", "there is something of that name already", str(path), otherwise) from None
    except BaseException as error:
        _remove(path, made)
        if isinstance(error, OSError):
            raise MoecError("M210", f"it cannot be written: {error.strerror}", str(path), otherwise) from error
        raise


def write_over(path: Path, text: str) -> None:
    """Write a text in the place of a file, whole or not at all: on a full disk, or when the user stops it, what lay
    there is there still. A file with other names (hard links) keeps them.

    Raises:
        PermissionError: where the file is write-protected: a folder that may be written would let it be replaced.
        OSError: where it cannot be written for another reason.
    """
    path = path.resolve()  # a link stays one
    before = path.stat() if path.exists() else None
    if before:
        path.open("r+b").close()  # the system itself says whether it is write-protected
        if before.st_nlink > 1:
            _write_in_place(path, text)
            return
    beside = path.with_name(f".moec-{os.getpid()}-{threading.get_ident()}.part")
    try:
        file = beside.open("x", encoding="utf-8", newline="")
    except PermissionError:  # nothing new may lie in the folder
        if before is None:
            raise
        _write_in_place(path, text)
        return
    try:
        with file:
            file.write(text)
        if before:
            beside.chmod(stat.S_IMODE(before.st_mode))
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _write_in_place(path: Path, text: str) -> None:
    """Write a text into a file that is there; what was in it comes back where the text has no room."""
    old, new = path.read_bytes(), text.encode()
    with path.open("r+b", buffering=0) as file:
        try:
            _put(file, new)
        except BaseException:
            _put(file, old)
            raise


def _put(file: RawIOBase, content: bytes) -> None:
    """Make `content` all that is in a file; its room is given up last."""
    file.seek(0)
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) or 0 :]  # a full disk takes the beginning, then raises
    file.truncate()


def _remove(path: Path, made: os.stat_result | None) -> None:
    """Remove the beginning of a file that was made here; what has taken its place stays."""
    with contextlib.suppress(OSError):
        if made is not None and os.path.samestat(path.lstat(), made):
            path.unlink()
