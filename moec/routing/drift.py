"""How far two routers choose differently for the same tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moec.routing.tally import Choice


@dataclass(frozen=True)
class Drift:
    """Two routers beside each other.

    Attributes:
        layer: the block's name in the first model.
        agreement: share of the first one's choices that the other makes too.
        same: share of tokens with the same set of experts.
        total_variation: half the sum of the differences of their loads: 0 for equal loads, 1 for disjoint ones.
    """

    layer: str
    agreement: float
    same: float
    total_variation: float


class DriftTally:
    """Counts over tokens of one layer."""

    def __init__(self, experts: int) -> None:
        self._counts = torch.zeros(2, experts, dtype=torch.float64)
        self._tokens = self._same = 0
        self._agreement = 0.0

    def add(self, first: Choice, other: Choice) -> None:
        """Count what both chose for the same tokens."""
        a, b = (_masks(choice) for choice in (first, other))
        self._tokens += len(a)
        self._same += int((a == b).all(-1).sum())
        self._agreement += float(((a & b).sum(-1) / a.sum(-1).clamp(min=1)).double().sum())
        self._counts += torch.stack([a.sum(0), b.sum(0)]).double()

    def found(self, layer: str) -> Drift:
        """The figures."""
        tokens = max(self._tokens, 1)
        loads = self._counts / self._counts.sum(-1, keepdim=True).clamp(min=1)
        varied = float((loads[0] - loads[1]).abs().sum()) / 2
        return Drift(layer, self._agreement / tokens, self._same / tokens, varied)


def _masks(choice: Choice) -> torch.Tensor:
    """The experts of each token, bool `[T, E]`."""
    used = choice.weights.ne(0).float()
    return torch.zeros(len(choice.ids), choice.experts).scatter_reduce(1, choice.ids, used, "amax") > 0
