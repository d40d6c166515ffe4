"""One model on several devices, on paper: split by matrices, by experts, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moec.planning.devices import Device
from moec.planning.formats import stored_bytes
from moec.planning.memory import Memory, memory_of
from moec.planning.pace import time_on
from moec.planning.parallel import expert_parallel
from moec.planning.step import Time, time_of
from moec.planning.tensor import HOP, sent_bytes
from moec.planning.work import Work

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
        time: of a step; None where it does not fit.
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


def _held(work: Work, memory: Memory, ranks: int, how: How) -> int:
    split = memory.total - memory.runtime
    if how == "tensor":
        return memory.runtime + -(-split // ranks)
    texts = -(-(memory.state + memory.logits) // ranks) + memory.activations
    experts = stored_bytes(work.shape.tensors, work.format).get("routed experts", 0) if how == "expert" else 0
    return memory.runtime + memory.weights - experts + -(-experts // ranks) + texts


def _sent(work: Work, ranks: int, how: How) -> float:
    """Bytes that a device sends in a forward."""
    if how == "data" or ranks == 1:
        return 0.0
    if how == "tensor":
        return sent_bytes(work, ranks)
    return work.tokens / ranks * expert_parallel(work.shape, ranks, load=work.load).wire_bytes


def _time(work: Work, device: Device, ranks: int, how: How, imbalance: float) -> Time:
    own = replace(work, texts=work.texts / ranks)
    if how == "tensor":
        return time_on(work, device, ranks)
    return time_on(own, device) if how == "data" else _expert_time(work, own, device, ranks, imbalance)


def _expert_time(work: Work, own: Work, device: Device, ranks: int, imbalance: float) -> Time:
    """By the roofline: a device's own texts but for experts, and the busiest one's part of those."""
    routed = _routed(work, work.tokens) / ranks * imbalance
    rest = own.step.weight_bytes - _routed(work, own.tokens)
    step = replace(own.step, weight_bytes=rest + routed, flops=own.step.flops * imbalance)
    found = time_of(step, device, work.format)
    if ranks == 1:
        return found
    hops, moved = 2 * len(work.shape.mixtures), _sent(work, ranks, "expert") / (device.link * 1e9)
    origin = f"roofline of {ranks} devices; {device.link:g} GB/s between them, 5 to 20 us an exchange (rule of thumb)"
    low, high = (end + moved + hops * hop for end, hop in zip((found.low, found.high), HOP, strict=True))
    return Time(low, high, found.bound, origin)


def _routed(work: Work, tokens: float) -> float:
    """Bytes of the routed experts that so many tokens touch."""
    whole = stored_bytes(work.shape.tensors, work.format).get("routed experts", 0)
    count = sum(m.parameters for m in work.shape.mixtures)
    touched = sum(
        m.parameters * work.load.distinct(place, m, tokens) / m.experts for place, m in enumerate(work.shape.mixtures)
    )
    return whole * touched / count if count else 0.0
