"""Experts that lie outside of the device: what has to come over a link for every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moec.errors import MoecError
from moec.planning.costs import memory_on
from moec.planning.devices import Device
from moec.planning.formats import Format, stored_bytes
from moec.planning.links import Link, find_link
from moec.planning.load import Load
from moec.planning.on_cpu import ThisMachine, held_on
from moec.planning.shape import Shape
from moec.planning.step import expert_bytes

SHARES = (8, 4, 2)  # parts of the experts that are tried where no device says how many fit


@dataclass(frozen=True)
class Offload:
    """Decoding with some experts of each layer on the device and the others behind a link.

    Attributes:
        format, device, batch: what was asked; no device where none was.
        link: what lies between. rate: of it, in GB/s.
        kept: experts of each layer that stay on the device, the most popular ones; the mean over layers.
        hit_rate: share of the distinct experts of a step that are among those.
        bytes_a_step: that come over the link. bytes_a_token: the same for each text.
        tokens_a_second: at the most: nothing but the link is counted; None where nothing comes over it.
    """

    format: str
    device: str | None
    batch: int
    link: str
    rate: float
    kept: float
    hit_rate: float
    bytes_a_step: float
    bytes_a_token: float
    tokens_a_second: float | None


def offloads(
    shape: Shape,
    formats: Sequence[Format],
    devices: Sequence[Device | None],
    batches: Sequence[int],
    context: int,
    where: Sequence[str],
    load: Load,
) -> Iterator[Offload]:
    """Every combination; with a device as many experts stay as fit beside the rest, else an eighth to a half. This
    machine's processor has no row for `ram`, which is its own memory.

    Args:
        shape: a mixture.
        formats, devices, batches, context: as for `estimate`.
        where: `ram` (the device's link to its host, PCIe 4.0 without a device), `disk` (NVMe), or a link.
        load: how often experts are taken.

    Raises:
        MoecError: M201 for a dense model, M202 for an unknown link.
    """
    if where and not shape.mixtures:
        raise MoecError("M201", f"{shape.name} has no experts to keep elsewhere", "--offload", "leave --offload out")
    for name in where:
        for format in formats:
            for device in [d for d in devices if name != "ram" or not isinstance(d, ThisMachine)]:
                link = _link(name, device)
                for batch in batches:
                    for share in _kept(shape, format, device, batch, context):
                        yield offload(shape, format, device, batch, link, share, load)


def offload(
    shape: Shape, format: Format, device: Device | None, batch: int, link: Link, share: float, load: Load
) -> Offload:
    """One row: `share` of each layer's experts stay. Which ones stay is fixed, so that the figure is what a cache that
    knew their popularity would reach; one that follows the text can be better or worse."""
    sizes = expert_bytes(shape, held_on(format, device))
    touched = missed = sent = kept = 0.0
    for place, mixture in enumerate(shape.mixtures):
        stay = int(share * mixture.experts)
        odds = sorted(load.chances(place, mixture), reverse=True)
        asked = [1 - (1 - p) ** batch for p in odds]
        touched, missed = touched + sum(asked), missed + sum(asked[stay:])
        sent, kept = sent + sum(asked[stay:]) * sizes[place], kept + stay / len(shape.mixtures)
    hit = 1 - missed / touched if touched else 1.0
    fast = batch / link.seconds(sent) if sent else None
    name = device.name if device else None
    return Offload(format.name, name, batch, link.name, link.rate, kept, hit, sent, sent / batch, fast)


def _link(name: str, device: Device | None) -> Link:
    if name == "ram":
        return Link("ram", device.host, f"the host of {device.name}") if device else find_link("pcie4")
    return find_link("nvme" if name == "disk" else name, "--offload")


def _kept(shape: Shape, format: Format, device: Device | None, batch: int, context: int) -> list[float]:
    """Shares of the experts that stay."""
    if device is None:
        return [1 / n for n in SHARES]
    experts = stored_bytes(shape.tensors, held_on(format, device)).get("routed experts", 0)
    memory = memory_on(shape, format, device, batch, context)
    room = device.memory_bytes - (memory.total - experts)
    return [max(0.0, min(1.0, room / experts))] if room >= 0 and experts else []
