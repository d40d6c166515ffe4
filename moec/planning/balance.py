"""How evenly a load of experts falls on devices, and how many copies of hot experts make it even."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from moec.planning.load import Load
from moec.planning.shape import Mixture, Shape

EVEN = 1.1  # max / mean of the ranks that is even enough


@dataclass(frozen=True)
class Balance:
    """The busiest of some ranks beside the mean, over a long time; 1 is even. The worst layer counts.

    Attributes:
        in_order: experts in the order of their numbers, the same count on each rank.
        placed: the same count, each put where it evens most.
        copies: experts that each layer has more, a copy each, so that it is at most 1.1; 0 where none is needed, None
            where even a copy of every expert on every rank is not enough.
        with_copies: what is left with them; None likewise.
    """

    in_order: float
    placed: float
    copies: int | None
    with_copies: float | None


def balance(shape: Shape, ranks: int, load: Load) -> Balance:
    """The balance of a mixture whose experts lie on ranks that divide them."""
    if load.uniform:
        return Balance(1.0, 1.0, 0, 1.0)
    layers = [_shares(place, mixture, load) for place, mixture in enumerate(shape.mixtures)]
    worst = max(layers, key=lambda shares: _peak(pack(shares, [1] * len(shares), ranks)))
    in_order = max(_in_order(shares, ranks) for shares in layers)
    placed = _peak(pack(worst, [1] * len(worst), ranks))
    copies, left = replication(worst, ranks)
    return Balance(in_order, placed, copies, left)


def busiest(place: int, mixture: Mixture, ranks: int, load: Load) -> float:
    """The tokens of the busiest rank over the mean in one layer, experts in the order of their numbers."""
    return 1.0 if load.uniform else _in_order(_shares(place, mixture, load), ranks)


def replication(shares: Sequence[float], ranks: int) -> tuple[int | None, float | None]:
    """How many copies one layer needs, and what is left: every rank gets one more place until it is even enough; each
    place goes to the expert with the most tokens a copy, which its copies share (as DeepSeek's EPLB does)."""
    experts = len(shares)
    for more in range(experts - experts // ranks + 1):
        copies = [1] * experts
        heap = [(-share, place) for place, share in enumerate(shares)]
        heapq.heapify(heap)
        for _ in range(more * ranks):
            _, place = heapq.heappop(heap)
            copies[place] += 1
            heapq.heappush(heap, (-shares[place] / copies[place], place))
        peak = _peak(pack(shares, copies, ranks))
        if peak <= EVEN:
            return more * ranks, peak
    return None, None


def pack(shares: Sequence[float], copies: Sequence[int], ranks: int) -> list[float]:
    """The load of each rank when every copy goes, largest first, to the least loaded rank that has a place left."""
    loads = sorted((s / n for s, n in zip(shares, copies, strict=True) for _ in range(n)), reverse=True)
    places = -(-len(loads) // ranks)
    heap = [(0.0, rank, places) for rank in range(ranks)]
    full = []
    for each in loads:
        total, rank, left = heapq.heappop(heap)
        entry = (total + each, rank, left - 1)
        if left > 1:
            heapq.heappush(heap, entry)
        else:
            full.append(entry)
    return [total for total, _, _ in [*full, *heap]]


def _shares(place: int, mixture: Mixture, load: Load) -> tuple[float, ...]:
    """Of the tokens' choices: a share that no expert can have, as a steep law asks for, is cut as in `chances`."""
    odds = load.chances(place, mixture)
    return tuple(p / sum(odds) for p in odds)


def _in_order(shares: Sequence[float], ranks: int) -> float:
    each = len(shares) // ranks
    return _peak([sum(shares[k * each : (k + 1) * each]) for k in range(ranks)])


def _peak(ranks: Sequence[float]) -> float:
    return max(ranks) * len(ranks) / sum(ranks)
