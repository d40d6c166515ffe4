"""Read files that others wrote: no pipe or device is opened, and nothing is read that is larger than it may be."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

TEXT_BYTES = 2**26  # no config, index or manifest is larger; a vocabulary or a table of weights stays below


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file for reading, never a pipe (which may wait for ever), a socket or a device.

    Raises:
        OSError: as `open` does, with a reason in words for what is no file.
    """
    _require_file(path, Path(path).stat().st_mode)  # opening some devices has effects, so they are not opened to look
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  # it has the descriptor, and closes it once
    try:
        _require_file(path, os.fstat(file.fileno()).st_mode)
        return file
    except BaseException:
        file.close()
        raise


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: str | Path, most_bytes: int = TEXT_BYTES) -> bytes:
    """The content of a file. Raises OSError for what is no file, and for one of more than `most_bytes`."""
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > most_bytes:
            raise OSError(errno.EFBIG, f"it has {size_bytes} bytes, and {most_bytes} at most are read", str(path))
        return file.read()


def read_text(path: str | Path, most_bytes: int = TEXT_BYTES) -> str:
    """The same as text. Raises UnicodeDecodeError, a ValueError, where it is not UTF-8."""
    return read_bytes(path, most_bytes).decode("utf-8")


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, read in blocks. Raises OSError for what is no file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_file(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, no file", str(path))
