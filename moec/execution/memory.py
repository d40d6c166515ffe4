"""What this process and this machine have in memory."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

_MACHINE, _GROUPS, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LOOK_S = 0.005
_limits: list[int] = []  # one for each `limited` that is under way


def peak_rss_bytes() -> int:
    """The most that was resident at once, since the start or since `reset_peak`; mapped files count while their pages
    are touched."""
    if _STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, other systems KiB


def rss_bytes() -> int:
    """What is resident now; on systems without /proc, the peak."""
    return _status("VmRSS") if _STATUS.exists() else peak_rss_bytes()


def reset_peak() -> bool:
    """Let the peak start again from what is resident now; False where the system has no such thing."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def available_bytes() -> int:
    """What can still be taken without swapping, as far as the system says; a quarter of the memory where it does
    not. Never more than what `total_bytes` leaves beside what this process holds."""
    left = max(total_bytes() - own_bytes(), 0)
    if not _MACHINE.exists():
        return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4, left)
    line = next(line for line in _MACHINE.read_text().splitlines() if line.startswith("MemAvailable:"))
    return min(int(line.split()[1]) * 1024, left)


def total_bytes() -> int:
    """The memory that this process may use: the machine's, or less where a control group (cgroup v1 or v2) or `limited`
    says so."""
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits(), *_limits)


@contextmanager
def limited(most_bytes: int) -> Iterator[None]:
    """`total_bytes` is so much at most within, and with it all that is decided by it."""
    _limits.append(most_bytes)
    try:
        yield
    finally:
        _limits.remove(most_bytes)


def _group_limits() -> list[int]:
    """Of the control group of this process and those around it; in a container its own is the root."""
    lines = [_GROUP.read_text()] if _GROUP.exists() else []
    paths = [line.split(":", 2)[2].strip("/") for line in "".join(lines).splitlines() if line.count(":") >= 2]
    around = {str(place) for path in paths for place in (Path(path), *Path(path).parents)} | {"."}
    files = [_GROUPS / place / "memory.max" for place in around]
    files += [_GROUPS / "memory" / place / "memory.limit_in_bytes" for place in around]
    found = []
    for file in files:
        with suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(file.read_text()))
    return found


def own_bytes() -> int:
    """What is resident and the process's own: what the system can only swap. Pages of mapped files, which it drops when
    it needs room, do not count. On systems without /proc, all that is resident."""
    return _status("RssAnon") + _status("RssShmem") if _STATUS.exists() else rss_bytes()


class OwnPeak:
    """The most of `own_bytes` within a block, looked at every few milliseconds: no system keeps that one.

    Attributes:
        bytes: the most so far.
    """

    def __init__(self) -> None:
        self.bytes, self._stop = own_bytes(), Event()
        self._thread = Thread(target=self._look, daemon=True)

    def __enter__(self) -> OwnPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self.bytes = max(self.bytes, own_bytes())


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024
