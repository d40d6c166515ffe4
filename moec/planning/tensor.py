"""Tensor parallelism on paper: what one of several devices holds and does when every matrix is split."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from moec.planning.devices import Device
from moec.planning.rooflines import ACTIVATION_BYTES
from moec.planning.shape import Mixture, Shape, State, Tensor
from moec.planning.step import Time, time_of
from moec.planning.work import Work

HOP = (5e-6, 20e-6)  # seconds of one exchange between devices of a node, whatever its size: a rule of thumb
LATENT = "compressed keys and values"
_BY_COLUMNS = re.compile(r"(o_proj|down_proj|out_proj|dense|w2|wo|fc2|dense_4h_to_h)\.weight$")


@lru_cache(64)
def split(shape: Shape, ranks: int) -> Shape:
    """The shape of one device's part: matrices by rows, those that come after by columns, experts by their width, heads
    of queries and of keys (whole ones, so that the device with most counts; a latent cache is whole on every device).
    Routers and norms stay whole."""
    if ranks == 1:
        return shape
    return replace(
        shape,
        tensors=tuple(_part(t, ranks) for t in shape.tensors),
        mixtures=tuple(_narrower(m, ranks) for m in shape.mixtures),
        states=tuple(_fewer(s, ranks, shape.head_size) for s in shape.states),
        heads=-(-shape.heads // ranks),
    )


def part_of(work: Work, ranks: int) -> Work:
    """A forward as one of the devices does it."""
    return replace(work, shape=split(work.shape, ranks))


def exchanged(work: Work) -> tuple[int, float]:
    """How many all-reduces a forward has, one after attention and one after the block of each layer, and how many
    numbers each is of."""
    return 2 * work.shape.layers, work.tokens * work.shape.hidden


def sent_bytes(work: Work, ranks: int) -> float:
    """What each device sends in a forward: a ring sends each number twice but for its own share."""
    return work.tokens * reduced_bytes(work.shape, ranks)


def reduced_bytes(shape: Shape, ranks: int) -> float:
    """The same for one token."""
    return 2 * shape.layers * shape.hidden * ACTIVATION_BYTES * 2 * (ranks - 1) / ranks


def tensor_time(work: Work, device: Device, ranks: int) -> Time:
    """The time of a forward that devices of one node split, by the roofline."""
    found = time_of(part_of(work, ranks).step, device, work.format)
    if ranks == 1:
        return found
    count, moved = exchanged(work)[0], sent_bytes(work, ranks) / (device.link * 1e9)
    origin = f"roofline of {ranks} devices; {device.link:g} GB/s between them, 5 to 20 us an exchange (rule of thumb)"
    return replace(
        found, low=found.low + moved + count * HOP[0], high=found.high + moved + count * HOP[1], origin=origin
    )


def _part(tensor: Tensor, ranks: int) -> Tensor:
    if len(tensor.shape) < 2 or tensor.part in ("router", "norm"):
        return tensor
    axis = len(tensor.shape) - (1 if _BY_COLUMNS.search(tensor.name) or tensor.name.endswith("down_proj") else 2)
    sizes = list(tensor.shape)
    sizes[axis] = -(-sizes[axis] // ranks)
    codes, scales = (-(-n // ranks) for n in (tensor.codes, tensor.scales))
    return replace(tensor, shape=tuple(sizes), codes=codes, scales=scales)


def _narrower(mixture: Mixture, ranks: int) -> Mixture:
    return replace(mixture, parameters=mixture.parameters // ranks, intermediate=max(1, mixture.intermediate // ranks))


def _fewer(state: State, ranks: int, head_size: int) -> State:
    if state.kind == LATENT:
        return state
    pair = 2 * head_size or 1  # numbers of a head's key and value
    heads = -(-state.per_token // (pair * ranks))
    fixed, wide = (-(-elements // ranks) for elements in (state.fixed, state.wide))
    return replace(state, per_token=min(state.per_token, heads * pair), fixed=fixed, wide=wide)
