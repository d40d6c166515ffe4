"""What tokens cost when devices do nothing but write at one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moec.planning.devices import Device
from moec.planning.formats import Format
from moec.planning.load import Load
from moec.planning.memory import Memory, memory_of
from moec.planning.on_cpu import ThisMachine, held_on
from moec.planning.pace import time_on, timed
from moec.planning.shape import Shape
from moec.planning.work import Work

NODE = 8  # devices that one replica may have


@dataclass(frozen=True)
class Cost:
    """A device, or as many as hold the model, that are never idle. Prompts are not counted.

    Attributes:
        format, device, batch: what was asked.
        devices: that hold it, a power of two.
        tokens_a_second: of all texts together, at least and at most.
        a_million: what a million tokens cost, likewise.
        origin: of the times.
    """

    format: str
    device: str
    batch: int
    devices: int
    tokens_a_second: tuple[float, float]
    a_million: tuple[float, float]
    origin: str


def memory_on(shape: Shape, format: Format, device: Device | None, batch: int, context: int) -> Memory:
    """What a model takes of a device's memory, or of any one's: an engine on this machine's processor holds more than a
    GPU's."""
    memory = memory_of(shape, held_on(format, device), batch, context)
    return device.holds(memory) if isinstance(device, ThisMachine) else memory


def sizes(shape: Shape, format: Format, device: Device, batch: int, context: int) -> list[int]:
    """Numbers of devices of one node that hold the model and so many texts: powers of two, since heads and experts are
    split by them. There is one of this machine."""
    needed = memory_on(shape, format, device, batch, context).devices(device)
    return [n for n in ((1,) if isinstance(device, ThisMachine) else (1, 2, 4, NODE)) if 0 < needed <= n]


def costs(
    shape: Shape,
    formats: Sequence[Format],
    devices: Sequence[Device],
    batches: Sequence[int],
    context: int,
    load: Load,
    prices: Mapping[str, float],
) -> Iterator[Cost]:
    """A row for each format, device with a price and known times, and batch that one node holds."""
    for format in formats:
        for device in [d for d in devices if d.name in prices and timed(shape, format, d)]:
            for batch in batches:
                for ranks in sizes(shape, format, device, batch, context)[:1]:
                    time = time_on(Work(shape, format, batch, context, load), device, ranks)
                    slow, fast = batch / time.high, batch / time.low
                    low, high = (prices[device.name] * ranks / (rate * 3600) * 1e6 for rate in (fast, slow))
                    yield Cost(format.name, device.name, batch, ranks, (slow, fast), (low, high), time.origin)
