"""Mixtures in plain torch whose experts have a capacity, over which tokens are dropped: in ways that one rule says, and
in ways that are nearly that rule."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.mixtures import EXPERTS, OneHot, Switch


class Few(Switch):
    """Top-1, as Switch Transformers have it."""

    capacity = 5


class Capacity(OneHot):
    """Both choices of a token are in line before those of the next."""

    most: object = 7

    def kept(self, ids: Tensor, count: int) -> Tensor:
        """Which experts have room for a token, `[T, E]`."""
        return F.one_hot(ids, EXPERTS).sum(1).cumsum(0) <= self.limit(count)  # type: ignore[operator]

    def limit(self, count: int) -> object:
        """Of so many tokens."""
        return self.most

    def mask(self, weights: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
        """What each expert counts, `[T, E]`."""
        return (F.one_hot(ids, EXPERTS).to(weights.dtype) * weights[..., None]).sum(1) * kept

    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        mask = self.mask(weights, ids, self.kept(ids, x.shape[0]))
        return torch.einsum("te,ted->td", mask, torch.stack([expert(x) for expert in self.experts], 1))


class Share(Capacity):
    """The capacity grows with the number of tokens."""

    def limit(self, count: int) -> int:
        return count // EXPERTS + 1


class Left(Capacity):
    """What is left of a token's weights is brought to a sum of one."""

    def mask(self, weights: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
        found = super().mask(weights, ids, kept)
        return found / found.sum(-1, keepdim=True).clamp(min=1e-9)


class FirstChoices(Capacity):
    """GShard: second choices are in line behind all first ones."""

    def places(self, hot: Tensor) -> Tensor:
        """The place of each choice, from 0 on."""
        first, second = hot[:, 0], hot[:, 1]
        behind = second.cumsum(0) - 1 + first.sum(0, keepdim=True)
        return torch.stack([((first.cumsum(0) - 1) * first).sum(-1), (behind * second).sum(-1)], 1)

    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        hot = F.one_hot(ids, EXPERTS)
        weights = weights * (self.places(hot) < self.most)  # type: ignore[operator]
        mask = (hot.to(x.dtype) * weights[..., None]).sum(1)
        return torch.einsum("te,ted->td", mask, torch.stack([expert(x) for expert in self.experts], 1))


class Dropped(FirstChoices):
    """The same counted in one cumulative sum, and what is over it named."""

    def places(self, hot: Tensor) -> Tensor:
        line = hot.transpose(0, 1).reshape(-1, EXPERTS).cumsum(0) - 1
        return (line.view(2, -1, EXPERTS).transpose(0, 1) * hot).sum(-1)


RULES: tuple[type, ...] = (Few, Capacity, Share, Left, FirstChoices, Dropped)


class Held(Capacity):
    """The number lies in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.tensor(7))

    def limit(self, count: int) -> object:
        return self.held


class Compared(Capacity):
    """The number is no whole one."""

    most = 7.5


class InPieces(Capacity):
    """Places are counted in pieces of four."""

    def kept(self, ids: Tensor, count: int) -> Tensor:
        return F.one_hot(ids, EXPERTS).sum(1).cumsum(0) // 4 <= 2


class FromTheEnd(Capacity):
    """The last tokens come first."""

    def kept(self, ids: Tensor, count: int) -> Tensor:
        return F.one_hot(ids, EXPERTS).sum(1).flip(0).cumsum(0).flip(0) <= 7


class OfOneExpert(Capacity):
    """Only the first expert has a capacity."""

    def kept(self, ids: Tensor, count: int) -> Tensor:
        return (F.one_hot(ids, EXPERTS).sum(1) * torch.tensor([1, 0, 0, 0])).cumsum(0) <= 7


class SecondAlone(FirstChoices):
    """Second choices are in line without the first ones."""

    def places(self, hot: Tensor) -> Tensor:
        return ((hot.cumsum(0) - 1) * hot).sum(-1)


class Together(Capacity):
    """All experts have one line."""

    def kept(self, ids: Tensor, count: int) -> Tensor:
        return F.one_hot(ids, EXPERTS).sum((1, 2), keepdim=False).cumsum(0)[:, None] <= 7


class ByScores(Capacity):
    """A token that is hardly sent to an expert takes no room there."""

    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        counted = F.one_hot(ids, EXPERTS) * (weights > 0.3)[..., None]
        mask = self.mask(weights, ids, counted.sum(1).cumsum(0) <= 7)
        return torch.einsum("te,ted->td", mask, torch.stack([expert(x) for expert in self.experts], 1))


class Wraps(Capacity):
    """Places are counted in 16 bits, and begin anew behind 32,767: far beyond any trial."""

    def kept(self, ids: Tensor, count: int) -> Tensor:
        return F.one_hot(ids, EXPERTS).sum(1).cumsum(0, dtype=torch.int16) <= 7


class Narrowed(Capacity):
    """Places are counted, and then cut to 16 bits."""

    def kept(self, ids: Tensor, count: int) -> Tensor:
        return F.one_hot(ids, EXPERTS).sum(1).cumsum(0).to(torch.int16) <= 7


class WrapsBehind(FirstChoices):
    """Second choices begin behind a number of 16 bits."""

    def places(self, hot: Tensor) -> Tensor:
        first, second = hot[:, 0], hot[:, 1]
        behind = second.cumsum(0) - 1 + first.sum(0, keepdim=True, dtype=torch.int16)
        return torch.stack([((first.cumsum(0) - 1) * first).sum(-1), (behind * second).sum(-1)], 1)


NEARLY: tuple[type, ...] = (
    Held, Compared, InPieces, FromTheEnd, OfOneExpert, SecondAlone, Together, ByScores, Wraps, Narrowed, WrapsBehind,
)  # fmt: skip
