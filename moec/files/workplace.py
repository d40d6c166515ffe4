"""A private folder beside the place of what is to be published. It goes when its process does: a lock says who lives.

The folder of a process that was killed stays behind, without its lock, and the next one that works there removes it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks, and nothing is swept there
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\.(?P<out>.+)\.moec-[0-9a-f]{8}")
_ALIVE: list[Path] = []  # of this process
DEPTH = 4  # folders below the one that a user names: people keep engines by model, target and date
OLD = "old"  # what stood in the place while a new one is moved there, on systems that cannot swap


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A folder beside `out`, for what is to get that name; removed at the end with what is still in it.

    Raises:
        OSError: when the folder cannot be made.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out.parent)
    folder, locks = out.parent / f".{out.name}.moec-{secrets.token_hex(4)}", list[int]()
    _ALIVE.append(folder)
    try:
        _make(folder, locks)
        yield folder
    finally:
        _remove(folder, locks)
        _ALIVE.remove(folder)


def abandon() -> None:
    """Remove every work folder of this process at once, which is about to end."""
    for folder in [*_ALIVE]:
        with suppress(OSError):
            _put_back(folder)
        for _ in range(2):  # another thread may still be writing there
            shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove the work folders of dead processes, of this user only; what one of them had moved aside goes back to its
    place. Where the system has no locks, nobody knows who lives, and nothing is removed."""
    if fcntl is None:
        return
    with suppress(OSError):
        for folder in [p for p in parent.iterdir() if _NAME.fullmatch(p.name)]:
            with suppress(OSError):
                _sweep_one(folder)


def leftovers(top: Path, depth: int = DEPTH) -> list[Path]:
    """The work folders of dead processes of this user in a folder and some levels below it, by path; links are not
    followed. None where the system has no locks."""
    found = []
    for place, below, _ in os.walk(top) if fcntl is not None else ():
        for name in filter(_NAME.fullmatch, sorted(below)):
            with suppress(OSError), _dead(Path(place, name)) as dead:
                found += [Path(place, name)] if dead else []
        deep = len(Path(place).relative_to(top).parts) >= depth
        below[:] = [] if deep else sorted(name for name in below if not name.startswith("."))
    return found


def remove_leftover(folder: Path) -> bool:
    """Remove one of `leftovers`, unless a process works in it by now; what it had moved aside goes back to its place.
    Returns whether it is gone."""
    with suppress(OSError):
        _sweep_one(folder)
    return not folder.exists()


def _sweep_one(folder: Path) -> None:
    with _dead(folder) as dead:
        if dead:
            _put_back(folder)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _dead(folder: Path) -> Iterator[bool]:
    """Whether a work folder is this user's and its process is dead; within, nobody else takes it for one."""
    if folder.is_symlink() or not folder.is_dir() or folder.lstat().st_uid != os.getuid():
        yield False
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(lock, wait=False)
    finally:
        os.close(lock)


def _put_back(folder: Path) -> None:
    """Give what was moved aside its place again, if nothing is there."""
    name = _NAME.fullmatch(folder.name)
    if name and (folder / OLD).exists() and not (folder.parent / name["out"]).exists():
        (folder / OLD).rename(folder.parent / name["out"])


def _make(folder: Path, locks: list[int]) -> None:
    """Make a folder and lock it; again, where another process swept it before it was locked."""
    while True:
        folder.mkdir(mode=0o700)
        if fcntl is None:
            return  # such a system opens no folders either
        with suppress(FileNotFoundError):
            locks.append(os.open(folder, os.O_RDONLY))
            _lock(locks[-1], wait=True)
            if folder.exists():
                return


def _remove(folder: Path, locks: list[int]) -> None:
    """Remove a folder, to the end also where a signal comes meanwhile, and let its lock go."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        while locks:
            os.close(locks.pop())


def _lock(descriptor: int, wait: bool) -> bool:
    """Whether the lock is ours now. Where the file system has no locks, nobody gets one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
