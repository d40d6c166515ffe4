"""The weight cache: quantized weights and captured graphs, which took long to make, shared by all processes of a user.
`moec cache` shows and prunes it. It has nothing to do with a decoder's cache of keys and values, which `--no-cache`
leaves out; a compile with `--no-resume` does without this one.

An entry is a file whose name is the hash of what its content depends on. Of numbers that is all; of a graph it is all
that can be seen of code, and what a key misses is found where a compile fails (`moec.compiler.recapture`). It begins
with the hash of the rest: what was cut off or changed on the disk is removed, never used. Entries are written beside
their place and moved there. Where the folder cannot be written, nothing is kept and nothing fails.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from moec.files.home import cache_home
from moec.files.regular import read_bytes

FOLDER, GIGABYTES = "MOEC_CACHE_DIR", "MOEC_CACHE_GB"  # environment variables
DEFAULT_GIGABYTES = 10.0
_ENDING, _HASH_BYTES, _NEVER = ".kept", 32, 2**63
_unused: list[object] = []  # one for each `unused` that is under way; threads that read weights are meant, too


@dataclass(frozen=True)
class Entry:
    """A file of the weight cache.

    Attributes:
        age_s: seconds since it was last read or written.
    """

    path: Path
    size_bytes: int
    age_s: float


def folder() -> Path | None:
    """Where the weight cache lies: `$MOEC_CACHE_DIR`, else `moec` in `$XDG_CACHE_HOME` or `~/.cache`. None where the
    variable is empty or `off`, which switches it off, and where the folder is another user's or others may write to it:
    what they put there would become weights. None for a user without a home, and within `unused`, too."""
    if _unused:
        return None
    told = os.environ.get(FOLDER)
    if told is not None and told.strip().lower() in ("", "off"):
        return None
    base = cache_home()
    try:
        place = Path(told).expanduser() if told else base and base / "moec"
    except RuntimeError:  # `~somebody`, whom nobody knows
        return None
    if place is None:
        return None
    with suppress(OSError):  # it is not there yet, or cannot be
        found = place.stat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
            return None
    return place


@contextmanager
def unused() -> Iterator[None]:
    """No thread of this process reads or writes the weight cache within: what proves an engine is computed."""
    own = object()
    _unused.append(own)
    try:
        yield
    finally:
        _unused.remove(own)


def limit_bytes() -> int:
    """How large the weight cache may become: `$MOEC_CACHE_GB` gigabytes, 10 by default."""
    try:
        return int(float(os.environ.get(GIGABYTES, DEFAULT_GIGABYTES)) * 1e9)
    except (ValueError, OverflowError):
        return int(DEFAULT_GIGABYTES * 1e9)


def read(key: str) -> bytes | None:
    """The content of an entry, and None where there is none, or a broken one, which is removed."""
    place = folder()
    if place is None:
        return None
    path = place / (key + _ENDING)
    with suppress(OSError):
        whole = read_bytes(path, _NEVER)
        content = whole[_HASH_BYTES:]
        if hashlib.sha256(content).digest() == whole[:_HASH_BYTES]:
            with suppress(OSError):
                os.utime(path)  # what is used is pruned last
            return content
        path.unlink()
    return None


def write(key: str, content: bytes) -> bool:
    """Keep a content under a key, and prune what then is too much. False where the disk says no, or the content is
    larger than the whole weight cache may become."""
    place = folder()
    if place is None or _HASH_BYTES + len(content) > limit_bytes():
        return False
    new = place / f"{key}.{secrets.token_hex(4)}.new"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with new.open("xb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        new.replace(place / (key + _ENDING))
        prune(limit_bytes())
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def remove(key: str) -> None:
    """Forget what is kept under a key, if anything is."""
    place = folder()
    if place is not None:
        with suppress(OSError):
            (place / (key + _ENDING)).unlink(missing_ok=True)


def entries() -> list[Entry]:
    """All entries, the one that was used last first."""
    place = folder()
    return sorted(_files(place, _ENDING), key=lambda entry: entry.age_s) if place is not None else []


def prune(most_bytes: int, oldest_s: float = float("inf"), dry_run: bool = False) -> list[Entry]:
    """Remove what has not been used for longest until `most_bytes` at most are left, and what has not been used for
    `oldest_s` seconds: nothing stays that is older than what goes. Returns what goes. Nothing but moec's own files is
    touched."""
    gone, total = [], 0
    for entry in entries():
        total += entry.size_bytes
        if total > most_bytes or entry.age_s > oldest_s:
            gone.append(entry)
    place = folder()
    if place is not None:
        gone += [half for half in _files(place, ".new") if half.age_s > 3600]  # of a process that was killed
    for entry in gone if not dry_run else ():
        with suppress(OSError):
            entry.path.unlink()
    return gone


def _files(place: Path, ending: str) -> Iterator[Entry]:
    now = time.time()  # one for all: reading a folder takes time, and their order is to be that of their use
    with suppress(OSError):
        for path in place.iterdir():
            with suppress(OSError):
                found = path.lstat()
                if path.name.endswith(ending) and len(path.name.split(".")[0]) == 64 and path.is_file():
                    yield Entry(path, found.st_size, max(now - found.st_mtime, 0.0))
