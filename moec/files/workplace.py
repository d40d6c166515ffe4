"""A private folder beside the place of what is to be published. It goes when its process does: a lock says who lives.

The folder of a process that was killed stays behind, without its lock, and the next one that works there removes it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks, and nothing is swept there
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\.(?P<out>.+)\.moec-[a-z0-9_]{8}")
OLD = "old"  # what stood in the place while a new one is moved there, on systems that cannot swap


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A folder beside `out`, for what is to get that name; removed at the end with what is still in it.

    Raises:
        OSError: when the folder cannot be made.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out.parent)
    folder, lock = _locked(out)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the work folders of dead processes, of this user only; what one of them had moved aside goes back to its
    place."""
    with suppress(OSError):
        for folder in [p for p in parent.iterdir() if _NAME.fullmatch(p.name)]:
            with suppress(OSError):
                _sweep_one(folder)


def _sweep_one(folder: Path) -> None:
    found = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or found.st_uid != os.getuid():
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(lock, wait=False):
            return
        name = _NAME.fullmatch(folder.name)
        if name and (folder / OLD).exists() and not (folder.parent / name["out"]).exists():
            (folder / OLD).rename(folder.parent / name["out"])
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _locked(out: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock. Another process may sweep the folder before it is locked;
    then there is another one."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.moec-", dir=out.parent))
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        _lock(descriptor, wait=True)
        if folder.exists():
            return folder, descriptor
        os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool:
    """Whether the lock is ours now. Where the file system has no locks, nobody gets one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (OSError, AttributeError):
        return False
    return True
