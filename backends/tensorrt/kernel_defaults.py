"""Where `lowering=auto` takes moec's own kernels: a table by compute capability, which a measurement corrects
(`kernel_defaults.toml`)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = "kernel_defaults.toml"


@dataclass(frozen=True)
class KernelDefault:
    """What holds for one compute capability.

    Attributes:
        taken: whether `auto` takes the kernels where they can be had.
        origin: where that comes from, in words.
    """

    taken: bool
    origin: str


NONE = KernelDefault(False, "there is no entry for this GPU in the table of defaults")


@cache
def kernel_defaults(path: Path | None = None) -> dict[int, KernelDefault]:
    """The table: compute capability, `90` for SM 9.0, to what holds there. An origin is one of the file's `origins`, or
    stands for itself. `path` is of another file."""
    data = tomllib.loads((path or Path(__file__).with_name(FILE)).read_text(encoding="utf-8"))
    origins: dict[str, str] = data["origins"]
    return {
        int(name.removeprefix("sm")): KernelDefault(
            bool(entry["kernels"]), origins.get(entry["origin"], entry["origin"])
        )
        for name, entry in data["defaults"].items()
    }
