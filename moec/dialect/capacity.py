"""Which of a router's choices an expert has room for: those over its capacity are dropped, in the order of the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ORDERS = ("choices", "tokens")


@dataclass(frozen=True)
class Capacity:
    """How many choices an expert takes, and which come first.

    Attributes:
        limit: choices an expert, a whole number of 0 or more (a size of the graph where it hangs on the number of
            tokens).
        counted: bool `[..., T]`, tokens that are in line; the others are dropped and take no room. None for all.
        order: `choices`, in which all tokens' first choices come before the second ones (GShard: arXiv 2006.16668,
            NLLB-MoE: arXiv 2207.04672), or `tokens`, one token's choices after the other's. For one expert a token
            (Switch Transformer: arXiv 2101.03961) they are the same.
        drop_first: choices are dropped before `renormalize` divides by the sum of what is left (NLLB-MoE), not after.
            Only with `renormalize`. The rule should have a `floor` then: the sum may be 0.
    """

    limit: int
    counted: Tensor | None = None
    order: str = "choices"
    drop_first: bool = False

    @classmethod
    def of(cls, limit: int | None, counted: Tensor | None, kwargs: Mapping[str, Any]) -> Capacity | None:
        """From the arguments of a `moec::route`; None where it has no capacity.

        Raises:
            ValueError: where choices are dropped first, and nothing divides by what is left.
        """
        if kwargs.get("drop_first") and kwargs.get("combine", "renormalize") != "renormalize":
            raise ValueError(f"drop_first needs combine 'renormalize', not {kwargs['combine']!r}")
        rule = {name: kwargs[name] for name in ("order", "drop_first") if name in kwargs}
        return None if limit is None else cls(limit, counted, **rule)


def within_capacity(ids: Tensor, experts: int, room: Capacity) -> Tensor:
    """Which choices are kept: bool, of the same shape as `ids` `[..., T, K]`."""
    if ids.dim() == 1:
        return within_capacity(ids[None], experts, room)[0]
    kept = places_of(ids, experts, room.counted, room.order) <= room.limit
    return kept if room.counted is None else kept & room.counted.unsqueeze(-1)


def places_of(ids: Tensor, experts: int, counted: Tensor | None = None, order: str = "choices") -> Tensor:
    """The place of each choice in its expert's line, int64 `[..., T, K]`, from 1 on: one cumulative sum over the
    experts' columns. Without meaning for tokens that are not counted.

    The sum is one of float32, which every runtime has, and exact for lines of up to 16,777,216 choices.
    """
    rows = ids.mT if order == "choices" else ids
    line = rows.flatten(-2)
    columns = line.unsqueeze(-1) == torch.arange(experts, device=ids.device)
    if counted is not None:
        own = counted.unsqueeze(-1).expand(ids.shape)
        columns = columns & (own.mT if order == "choices" else own).flatten(-2).unsqueeze(-1)
    places = columns.to(torch.float32).cumsum(-2).gather(-1, line.unsqueeze(-1)).to(torch.int64).view(rows.shape)
    return places.mT if order == "choices" else places
