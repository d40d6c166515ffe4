"""Experts of several widths in one stack: which expert has which, and the stack put together again from one packed part
a width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moec.weights.lazy import Weight


@dataclass(frozen=True)
class ExpertWidths:
    """Which of a block's experts has how many bits.

    Parts are stored one a width, the narrowest first, each with its experts in their own order; `order` undoes that.

    Attributes:
        bits: of each expert.
    """

    bits: tuple[int, ...]

    @property
    def parts(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Each width that occurs, and its experts."""
        return tuple((b, tuple(e for e, own in enumerate(self.bits) if own == b)) for b in sorted(set(self.bits)))

    @property
    def order(self) -> tuple[int, ...]:
        """Where each expert stands in the parts one after another."""
        return order_of([experts for _, experts in self.parts])

    def __str__(self) -> str:
        return " and ".join(f"{b} bit for {len(experts)}" for b, experts in self.parts)


def order_of(parts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Where each of E experts stands when parts of them follow one another."""
    stored = [e for experts in parts for e in experts]
    return tuple(stored.index(e) for e in range(len(stored)))


def taken(weight: Weight, places: Sequence[int]) -> Weight:
    """`weight[places]`: some rows of the leading dimension in an order of their own, still read one by one."""
    places = list(places)

    def read(start: int, stop: int) -> torch.Tensor:
        picked = [weight.read(at, at + 1) for at in places[start:stop]]
        return torch.cat(picked) if picked else weight.read(0, 0)

    shape = (len(places), *weight.shape[1:])
    return Weight(shape, weight.dtype, f"{weight.origin}[{places}]", read, weight.atomic, inputs=(weight,))
