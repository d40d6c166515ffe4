"""What this process and this machine have in memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_MACHINE, _LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
    not."""
    if not _MACHINE.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    line = next(line for line in _MACHINE.read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def total_bytes() -> int:
    """The memory that this process may use: the machine's, or less where a control group (cgroup v2) limits it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return machine


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024
