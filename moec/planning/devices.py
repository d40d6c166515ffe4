"""What devices can do on paper: memory, bandwidth, matrix rate."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

import msgspec

from moec.errors import MoecError
from moec.registry import did_you_mean

GIB = 2**30


class Device(msgspec.Struct, frozen=True):
    """One device.

    Attributes:
        name: as it is asked for.
        memory: GiB. bandwidth: of that memory, in GB/s, reading.
        rates: dense matrix products in TFLOP/s, by the bits of the operands.
        link: to its neighbours in a node, in GB/s, one direction. host: from the host's memory, likewise.
    """

    name: str
    memory: float
    bandwidth: float
    rates: dict[int, float]
    link: float = 32.0
    host: float = 32.0

    @property
    def memory_bytes(self) -> int:
        """Its memory in bytes."""
        return int(self.memory * GIB)

    def flops(self, bits: float) -> float:
        """FLOP/s of products whose operands have so many bits: the rate of the next width that the device has."""
        wide = [width for width in sorted(self.rates) if width >= bits]
        return self.rates[wide[0] if wide else max(self.rates)] * 1e12


@cache
def devices() -> dict[str, Device]:
    """Every device that is known, by name."""
    raw = tomllib.loads(files("moec.planning").joinpath("devices.toml").read_text("utf-8"))
    return {
        name: Device(name, **(entry | {"rates": {int(k): v for k, v in entry["rates"].items()}}))
        for name, entry in raw.items()
    }


def find_device(name: str) -> Device:
    """The device of this name, written in any case, with or without dashes. Raises M202 with the nearest names."""
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    if plain in devices():
        return devices()[plain]
    raise MoecError("M202", f"no device is called {name!r}", "--device", did_you_mean(plain, ["cpu", *devices()]))
