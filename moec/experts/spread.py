"""A share of the experts, spread over the layers where it costs least."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moec.experts.cheapest import cheapest


def spread(curves: Sequence[Tensor], least: int, share: float, sizes: Sequence[int] | None = None) -> list[int]:
    """How many experts a token uses in each layer, so that all layers together use a share of their experts: the choice
    of the least total cost, see `moec.experts.cheapest`.

    Args:
        curves: of each layer, what a token with 1, 2, … E experts costs, in units that can be compared.
        least: experts that a layer keeps, at least 1; where that is more than the share, it is what all keep.
        sizes: of one expert of each layer; alike by default.
    """
    sizes = sizes or [1] * len(curves)
    most = max(map(len, curves))
    counts = [[min(n, len(c)) for n in range(min(least, len(c)), most + 1)] for c in curves]  # the last one repeats
    columns = max(map(len, counts))
    counts = [[*own, *own[-1:] * (columns - len(own))] for own in counts]
    costs = torch.stack([c.double()[torch.tensor(own) - 1] for c, own in zip(curves, counts, strict=True)])
    weighed = [[n * size for n in own] for own, size in zip(counts, sizes, strict=True)]
    whole = sum(own[-1] for own in weighed)
    budget = max(round(share * whole), sum(own[0] for own in weighed))
    return [own[k] for own, k in zip(counts, cheapest(costs, weighed, budget), strict=True)]
