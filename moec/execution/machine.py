"""Which machine this is: what tells it from another one when something that was measured is to be used again."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from moec.execution.memory import total_bytes

_PROCESSORS = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """A machine, as far as its speed depends on it.

    Attributes:
        processor: its model. cores: how many this process may use. gib: memory that it may use, in whole GiB.
        system: operating system and architecture.
    """

    processor: str
    cores: int
    gib: int
    system: str

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.gib} GiB, {self.system}"


def machine() -> Machine:
    """This one."""
    return Machine(processor_name(), cores(), total_bytes() >> 30, f"{platform.system()} {platform.machine()}")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor's model as the system names it."""
    lines = _PROCESSORS.read_text(errors="replace").splitlines() if _PROCESSORS.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
