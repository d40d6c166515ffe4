"""Names and links that could lead out of the folder that they belong to."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from moec.errors import MoecError
from moec.files.regular import read_text

_CACHE = "models--"  # folders of the Hugging Face cache; snapshots/REVISION/FILE links to blobs/HASH of the same


def stays_inside(name: str) -> bool:
    """Whether a name from an index or a manifest names something in its own folder on every system: relative, without
    `..`, drives and backslashes."""
    if not name or "\\" in name or "\0" in name:
        return False
    parts = PurePosixPath(name).parts
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or ".." in parts
    return bool(parts) and not outside


def leads_outside(file: Path, folder: Path) -> bool:
    """Whether a file of a folder is, behind links, somewhere else. Links of the Hugging Face cache from a snapshot to
    the same model's blobs stay inside."""
    real, home = file.resolve(), folder.resolve()
    return not any(real.is_relative_to(place) for place in (home, *_blobs(home)))


def require_inside(file: Path, folder: Path) -> None:
    """Raise M204 for a file of a folder that is a link out of it."""
    if leads_outside(file, folder):
        raise MoecError("M204", f"{file.name} is a link out of its folder", str(file), "put the file itself there")


def read_inside(file: Path, folder: Path) -> str:
    """The text of a file of a folder.

    Raises:
        MoecError: M204 when it is a link out of the folder. OSError, ValueError: as `moec.files.regular.read_text`.
    """
    require_inside(file, folder)
    return read_text(file)


def _blobs(folder: Path) -> list[Path]:
    """Where the files of a snapshot in the Hugging Face cache really are."""
    snapshots = folder.parent
    cached = snapshots.name == "snapshots" and snapshots.parent.name.startswith(_CACHE)
    return [snapshots.parent / "blobs"] if cached else []
