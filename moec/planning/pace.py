"""How long a forward takes on a device: from tables of measured kernels where there are any, else by the roofline."""

from __future__ import annotations

from moec.planning.devices import Device
from moec.planning.formats import Format
from moec.planning.load import UNIFORM, Load
from moec.planning.measured import tables
from moec.planning.on_cpu import ThisMachine
from moec.planning.shape import Shape
from moec.planning.step import Time
from moec.planning.tensor import tensor_time
from moec.planning.work import Work


def timed(shape: Shape, format: Format, device: Device) -> bool:
    """Whether times are known: of this machine only what was measured, of others by the roofline at the least."""
    return not isinstance(device, ThisMachine) or device.times(shape, format)


def time_on(work: Work, device: Device, ranks: int = 1) -> Time:
    """The time of a forward, as an interval with its origin, on one device that holds the whole model, or on devices of
    one node that split every matrix. What a pass has packed is in no table.

    Raises:
        ValueError: where this machine has no times for it, see `timed`.
    """
    if isinstance(device, ThisMachine):
        tokens = max(1, round(work.texts * work.rows))
        here = device.time(work.shape, work.format, tokens, work.context, not work.prompt, work.load)
        if here is None:
            raise ValueError(f"no times of {work.shape.name} in {work.format.name} are known on {device.name}")
        return here
    found = () if work.shape.packed else tables(device.name, work.format.name)
    if found:
        from moec.planning.composed import composed

        measured = composed(work, device, found, ranks)
        if measured is not None:
            return measured
    return tensor_time(work, device, ranks)


def decode_time(
    shape: Shape, format: Format, device: Device, batch: float, context: int, load: Load = UNIFORM, rows: int = 1
) -> Time:
    """Of one token for each of `batch` texts, or of `rows` tokens of each, with `context` tokens behind them."""
    return time_on(Work(shape, format, batch, context, load, rows), device)


def prompt_time(shape: Shape, format: Format, device: Device, batch: float, prompt: int, load: Load = UNIFORM) -> Time:
    """Of `batch` prompts of so many tokens in one go."""
    return time_on(Work(shape, format, batch, prompt, load, prompt=True), device)
