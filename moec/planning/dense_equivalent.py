"""The size of the dense model that a mixture is like, by the two rules that circulate; they answer different questions,
so they are never one number."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moec.planning.shape import Shape


@dataclass(frozen=True)
class DenseEquivalent:
    """Parameters of a dense model.

    Attributes:
        by_cost: total x A^0.63 / E^0.44, A active and E all experts of a layer: what serving costs.
        by_quality: the geometric mean of active and total parameters: folklore about quality.
    """

    by_cost: float
    by_quality: float


def dense_equivalent(shape: Shape) -> DenseEquivalent | None:
    """Both rules for a mixture whose layers are alike; None for a dense model."""
    if not shape.mixtures:
        return None
    mixture = shape.mixtures[-1]
    by_cost = shape.total * mixture.top_k**0.63 / mixture.experts**0.44
    return DenseEquivalent(by_cost, math.sqrt(shape.active * shape.total))
