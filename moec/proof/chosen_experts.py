"""Which tokens' choice of experts hangs on rounding: those that it changes, and with a capacity those that have others
in line before them."""

from __future__ import annotations

import torch
from torch import Tensor

from moec.dialect import Capacity, Routing, route_reference
from moec.dialect.capacity import places_of


def hanging(
    logits: Tensor,
    bias: Tensor | None,
    rule: Routing,
    noise: float,
    room: Capacity | None = None,
    spoiled: Tensor | None = None,
) -> Tensor:
    """Which tokens choose other experts when their logits change by `noise` of the largest, in the worst direction:
    bool `[...]`. With a capacity also those that may be dropped, or kept, when others choose otherwise; and where first
    choices are in line before second ones, those whose choices change their order.

    Args:
        logits: `[..., E]`. bias: `[E]` or None, for the selection. rule: how experts are chosen.
        room: how many choices each takes.
        spoiled: bool `[...]`, tokens that may choose anything, since they saw a token that an earlier block left open.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    ids = route_reference(logits, bias, rule)[1]
    step, count = noise * logits.abs().amax(-1, keepdim=True), ids.shape[-1]
    found = torch.zeros(logits.shape[:-1], dtype=torch.bool)
    for first in range(1 if room is not None and room.order == "choices" else count, count + 1):
        chosen = _mask(logits, ids[..., :first])
        moved = route_reference(torch.where(chosen, logits - step, logits + step), bias, rule)[1]
        found |= (_mask(logits, moved[..., :first]) != chosen).any(-1)
    if room is None:
        return found
    return found | _pushed(found if spoiled is None else found | spoiled, ids, logits, room)


def _pushed(found: Tensor, ids: Tensor, logits: Tensor, room: Capacity) -> Tensor:
    """Which tokens stand so near to the end of an expert's capacity that these, choosing otherwise, decide of them,
    wherever in the line they are."""
    if ids.dim() == 1:
        return torch.zeros_like(found)
    away = places_of(ids, logits.shape[-1], room.counted, room.order) - room.limit  # from 1 on a choice is dropped
    moving = found if room.counted is None else found & room.counted
    count = moving.sum(-1)[..., None, None]  # each moves a place by one at most
    near = ((away > -count) & (away <= count)).any(-1)
    return near if room.counted is None else near & room.counted


def _mask(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.zeros(logits.shape, dtype=torch.bool).scatter(-1, ids, True)
