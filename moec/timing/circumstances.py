"""Where and with what something was measured: a time without its machine says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from moec.execution.machine import cores, processor_name
from moec.execution.memory import total_bytes
from moec.report.environment import environment


@dataclass(frozen=True)
class Circumstances:
    """The machine and the versions of a measurement.

    Attributes:
        processor: its model. cores: how many this process may use. memory_bytes: that it may use.
        system: operating system and architecture.
        gpus: names of the GPUs that PyTorch sees.
        threads: of PyTorch; a target's `threads=N` is the engine's own.
        versions: package -> version, of everything that runs.
        at: when, in UTC (ISO 8601, to the second).
    """

    processor: str
    cores: int
    memory_bytes: int
    system: str
    gpus: tuple[str, ...]
    threads: int
    versions: dict[str, str]
    at: str

    @property
    def machine(self) -> str:
        """The machine in a line."""
        gpus = "".join(f", {name}" for name in self.gpus)
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return f"{self.processor}, {cores}, {self.memory_bytes / 2**30:.0f} GiB{gpus}, {self.system}"

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.machine}\n{versions}; {self.threads} threads of PyTorch, {self.at}"


def circumstances(versions: Mapping[str, str] | None = None) -> Circumstances:
    """Those of this process now; `versions`: of the runtimes, beside those that are always there."""
    every = environment(versions)
    system, _ = every.pop("system"), every.pop("cpu_capability", None)
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    gpus = tuple(torch.cuda.get_device_name(k) for k in cuda)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Circumstances(processor_name(), cores(), total_bytes(), system, gpus, torch.get_num_threads(), every, now)
