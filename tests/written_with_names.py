"""Mixtures in plain torch whose experts have names, not numbers, and some that look like one and are none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.mixtures import EXPERTS, WIDTH, Expert, Loop


class InADict(Loop):
    """Experts by names, which are in another order where they are kept than where they are used."""

    names: tuple[str, ...] = ("math", "code", "prose", "talk")

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleDict({name: Expert(gated=True) for name in sorted(self.names)})

    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        out = torch.zeros_like(x)
        for e, name in enumerate(self.names):
            token, nth = torch.where(ids == e)
            out[token] += weights[token, nth, None] * self.experts[name](x[token])
        return out


class ByLetters(InADict):
    """A letter and a number."""

    names = ("x0", "x1", "x2", "x3")


class ByTwoStems(InADict):
    """Two words with numbers: four experts, not twice two."""

    names = ("math_1", "math_2", "code_1", "code_2")


class Attributes(Loop):
    """Experts beside a shared one and beside layers before and after them, all alike and in one module."""

    def __init__(self) -> None:
        super().__init__()
        del self.experts
        self.first, self.last, self.shared = Expert(), Expert(), Expert()
        self.east, self.west, self.north, self.south = (Expert() for _ in range(EXPERTS))

    def mix(self, x: Tensor) -> Tensor:
        x = self.first(x)
        gates, experts = self.gates(x), (self.east, self.west, self.north, self.south)
        mixed = sum(gates[:, e, None] * expert(x) for e, expert in enumerate(experts))
        return self.last(mixed + self.shared(x))  # type: ignore[no-any-return]


class ByAll(InADict):
    """Nothing is chosen: a softmax weighs all experts."""

    def mix(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        return sum(gates[:, e, None] * self.experts[name](x) for e, name in enumerate(self.names))  # type: ignore[return-value]


NAMED: tuple[type, ...] = (InADict, ByLetters, ByTwoStems, Attributes, ByAll)


class ShiftedNames(InADict):
    """The same with names."""

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().choice(x)
        return weights, (ids + 1) % EXPERTS


class NamedAndIdentity(InADict):
    """The last of four choices is the token itself: a mixture that no operator of the dialect says."""

    def mix(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        mixed = sum(gates[:, e, None] * self.experts[name](x) for e, name in enumerate(self.names[:3]))
        return mixed + gates[:, 3:] * x


NAMED_WRONG: tuple[type, ...] = (ShiftedNames, NamedAndIdentity)


class NamedHeads(InADict):
    """No mixture: all of them are used by every token, behind one gate that a maximum opens."""

    def mix(self, x: Tensor) -> Tensor:
        best = self.router(x).max(-1, keepdim=True)
        return torch.stack([expert(x) for expert in self.experts.values()]).sum(0) * (best.values > 0)


class GatedTwice(InADict):
    """Both matrices of an expert are behind gates of their own: two experts of two, not two times two of one."""

    names = ("east", "west")

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 2)
        self.top_k = 1

    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        out = torch.zeros_like(x)
        for e, name in enumerate(self.names):
            expert, gate = self.experts[name], weights * (ids == e)
            out = out + expert.down(F.silu(expert.up(x * gate)) * expert.gate(x * gate))
        return out
