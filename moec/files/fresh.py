"""Files of the user: written whole or not at all, and new ones never over one that is there."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
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
    there is there still. Where nothing new may lie beside it, it is written in place. Raises OSError."""
    path = path.resolve()  # a link stays one
    beside = path.with_name(f".moec-{os.getpid()}-{threading.get_ident()}.part")
    try:
        file = beside.open("x", encoding="utf-8", newline="")
    except PermissionError:
        path.write_text(text, encoding="utf-8", newline="")
        return
    try:
        with file:
            file.write(text)
        if path.exists():
            beside.chmod(stat.S_IMODE(path.stat().st_mode))
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _remove(path: Path, made: os.stat_result | None) -> None:
    """Remove the beginning of a file that was made here; what has taken its place stays."""
    with contextlib.suppress(OSError):
        if made is not None and os.path.samestat(path.lstat(), made):
            path.unlink()
