"""One model on several devices, on paper: split by matrices, by experts, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moec.planning.devices import Device
from moec.planning.formats import stored_bytes
from moec.planning.memory import Memory, memory_of
from moec.planning.parallel import expert_parallel
from moec.planning.step import BANDWIDTH_SHARE, RATE_SHARE, Step, Time, bits_computed
from moec.planning.work import Work

HOP = (5e-6, 20e-6)  # seconds of one exchange between devices of a node, whatever its size: a rule of thumb
How = Literal["tensor", "expert", "data"]


@dataclass(frozen=True)
class Spread:
    """A way to use several devices for decoding.

    Attributes:
        how: `tensor`: every matrix and the state are split; `expert`: the experts are split, each device has the rest
            and its part of the texts; `data`: each has the whole model and its part of the texts.
        format, device, ranks, batch: what was asked; the batch is that of all devices together.
        bytes: a device has to hold. fits: whether it does.
        sent: bytes that each device sends in a step.
        time: of a step, by the roofline; None where it does not fit.
    """

    how: How
    format: str
    device: str
    ranks: int
    batch: int
    bytes: int
    fits: bool
    sent: float
    time: Time | None


def spreads(works: Sequence[Work], device: Device, ranks: int, imbalance: float = 1.0) -> Iterator[Spread]:
    """Each of the ways that the model has, for every forward; `imbalance` is the busiest rank of experts over the
    mean."""
    for work in works:
        ways: tuple[How, ...] = ("tensor", "expert", "data") if work.shape.mixtures else ("tensor", "data")
        for how in ways:
            yield spread(work, device, ranks, how, imbalance)


def spread(work: Work, device: Device, ranks: int, how: How, imbalance: float = 1.0) -> Spread:
    """One way, for one forward."""
    memory = memory_of(work.shape, work.format, max(1, round(work.texts)), work.context)
    held = _held(work, memory, ranks, how)
    fits = held <= device.memory_bytes
    sent = _sent(work, ranks, how)
    time = _time(work, device, ranks, how, imbalance) if fits else None
    return Spread(how, work.format.name, device.name, ranks, round(work.texts), held, fits, sent, time)


def tensor_time(work: Work, device: Device, ranks: int) -> Time:
    """Of a forward whose matrices and state are split evenly over devices of one node."""
    return _time(work, device, ranks, "tensor", 1.0)


def _held(work: Work, memory: Memory, ranks: int, how: How) -> int:
    split = memory.total - memory.runtime
    if how == "tensor":
        return memory.runtime + -(-split // ranks)
    texts = -(-(memory.state + memory.logits) // ranks) + memory.activations
    experts = stored_bytes(work.shape.tensors, work.format).get("routed experts", 0) if how == "expert" else 0
    return memory.runtime + memory.weights - experts + -(-experts // ranks) + texts


def _sent(work: Work, ranks: int, how: How) -> float:
    """Bytes that a device sends: twice an all-reduce a layer, or what its tokens send to experts and back."""
    if how == "data" or ranks == 1:
        return 0.0
    if how == "tensor":
        return work.tokens * work.shape.layers * 2 * 2 * (ranks - 1) / ranks * work.shape.hidden * 2
    return work.tokens / ranks * expert_parallel(work.shape, ranks, load=work.load).wire_bytes


def _time(work: Work, device: Device, ranks: int, how: How, imbalance: float) -> Time:
    step = _share(work, ranks, how, imbalance)
    reading, computing = step.bytes / (device.bandwidth * 1e9), step.flops / device.flops(bits_computed(work.format))
    hops = (
        0 if how == "data" or ranks == 1 else 2 * (work.shape.layers if how == "tensor" else len(work.shape.mixtures))
    )
    moved = _sent(work, ranks, how) / (device.link * 1e9)
    low, high = (
        max(reading / BANDWIDTH_SHARE[1 - k], computing / RATE_SHARE[1 - k]) + moved + hops * HOP[k] for k in (0, 1)
    )
    origin = f"roofline of {ranks} devices; {device.link:g} GB/s between them, 5 to 20 us an exchange (rule of thumb)"
    return Time(low, high, "memory" if reading >= computing else "compute", origin)


def _share(work: Work, ranks: int, how: How, imbalance: float) -> Step:
    """What the busiest device does of a forward."""
    whole = work.step
    if how == "tensor":
        return replace(
            whole,
            weight_bytes=whole.weight_bytes / ranks,
            state_bytes=whole.state_bytes / ranks,
            flops=whole.flops / ranks,
        )
    own = replace(work, texts=work.texts / ranks).step
    if how == "data":
        return own
    routed = _routed(work, work.tokens) / ranks * imbalance
    rest = own.weight_bytes - _routed(work, work.tokens / ranks)
    return replace(own, weight_bytes=rest + routed, flops=own.flops * imbalance)


def _routed(work: Work, tokens: float) -> float:
    """Bytes of the routed experts that so many tokens touch."""
    whole = stored_bytes(work.shape.tensors, work.format).get("routed experts", 0)
    count = sum(m.parameters for m in work.shape.mixtures)
    touched = sum(
        m.parameters * work.load.distinct(place, m, tokens) / m.experts for place, m in enumerate(work.shape.mixtures)
    )
    return whole * touched / count if count else 0.0
