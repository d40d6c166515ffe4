"""One model on several devices, on paper: split by matrices, by experts, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moec.planning.balance import busiest
from moec.planning.costs import NODE
from moec.planning.devices import Device
from moec.planning.formats import stored_bytes
from moec.planning.memory import Memory, memory_of
from moec.planning.pace import time_on
from moec.planning.parallel import wire_bytes
from moec.planning.shape import Mixture
from moec.planning.step import Time, expert_bytes, time_of
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
        time: of a step; None where it does not fit, and beyond one node for what sends: links between nodes are not
            known.
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


def spreads(works: Sequence[Work], device: Device, ranks: int) -> Iterator[Spread]:
    """Each of the ways that the model has, for every forward."""
    for work in works:
        ways: tuple[How, ...] = ("tensor", "expert", "data") if work.shape.mixtures else ("tensor", "data")
        for how in ways:
            yield spread(work, device, ranks, how)


def spread(work: Work, device: Device, ranks: int, how: How) -> Spread:
    """One way, for one forward."""
    memory = memory_of(work.shape, work.format, max(1, round(work.texts)), work.context)
    held = _held(work, memory, ranks, how)
    fits = held <= device.memory_bytes
    sent = _sent(work, ranks, how)
    near = ranks <= NODE or how == "data"
    time = _time(work, device, ranks, how, sent) if fits and near else None
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
    return work.tokens / ranks * wire_bytes(work.shape, ranks, work.load)


def _time(work: Work, device: Device, ranks: int, how: How, sent: float) -> Time:
    own = replace(work, texts=work.texts / ranks)
    if how == "tensor":
        return time_on(work, device, ranks)
    return time_on(own, device) if how == "data" else _expert_time(work, own, device, ranks, sent)


def _expert_time(work: Work, own: Work, device: Device, ranks: int, sent: float) -> Time:
    """By the roofline: a device's own texts but for experts, and in each layer the busiest one's part of those."""
    sizes, layers = expert_bytes(work.shape, work.format), list(enumerate(work.shape.mixtures))
    alone = sum(size * work.load.distinct(place, m, own.tokens) for size, (place, m) in zip(sizes, layers, strict=True))
    routed = sum(size * _touched(work, place, m, ranks) for size, (place, m) in zip(sizes, layers, strict=True))
    more = sum((busiest(place, m, ranks, work.load) - 1) * (m.parameters - m.idle) for place, m in layers)
    step = replace(
        own.step,
        weight_bytes=own.step.weight_bytes - alone + routed,
        flops=own.step.flops + 2 * own.tokens * more,
    )
    found = time_of(step, device, work.format)
    if ranks == 1:
        return found
    hops, moved = 2 * len(work.shape.mixtures), sent / (device.link * 1e9)
    origin = f"roofline of {ranks} devices; {device.link:g} GB/s between them, 5 to 20 us an exchange (rule of thumb)"
    low, high = (end + moved + hops * hop for end, hop in zip((found.low, found.high), HOP, strict=True))
    return Time(low, high, found.bound, origin)


def _touched(work: Work, place: int, mixture: Mixture, ranks: int) -> float:
    """Experts that the tokens of all devices touch on the rank with most of them, in the order of their numbers."""
    if work.load.uniform:
        return work.load.distinct(place, mixture, work.tokens) / ranks
    odds, each = work.load.chances(place, mixture), mixture.experts // ranks
    asked = [1 - (1 - p) ** work.tokens for p in odds]
    return max(sum(asked[k * each : (k + 1) * each]) for k in range(ranks))
