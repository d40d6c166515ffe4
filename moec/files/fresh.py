"""New files of the user: written whole, and never over one that is there."""

from __future__ import annotations

from pathlib import Path

from moec.errors import MoecError


def write_new(path: Path, text: str, otherwise: str) -> None:
    """Write a text into a file that is not there yet.

    Args:
        otherwise: what the user can do where it cannot be written.

    Raises:
        MoecError: M210 when something has that name, or nothing can be written there.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise MoecError("M210", "there is something of that name already", str(path), otherwise) from None
    except OSError as error:
        raise MoecError("M210", f"it cannot be written: {error.strerror}", str(path), otherwise) from error
