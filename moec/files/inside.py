"""Names and links that could lead out of the folder that they belong to."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

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


def _blobs(folder: Path) -> list[Path]:
    """Where the files of a snapshot in the Hugging Face cache really are."""
    snapshots = folder.parent
    cached = snapshots.name == "snapshots" and snapshots.parent.name.startswith(_CACHE)
    return [snapshots.parent / "blobs"] if cached else []
