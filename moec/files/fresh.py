"""New files of the user: written whole or not at all, and never over one that is there."""

from __future__ import annotations

import contextlib
import os
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


def _remove(path: Path, made: os.stat_result | None) -> None:
    """Remove the beginning of a file that was made here; what has taken its place stays."""
    with contextlib.suppress(OSError):
        if made is not None and os.path.samestat(path.lstat(), made):
            path.unlink()
