"""Which neurons of a dense feed-forward network become one expert: what neurons are worth, and clusters of equal size.

The methods are those that the literature of carving names: rows of the first matrix cluster by direction (MoEfication,
arXiv 2110.01786), neurons that are large for the same tokens belong together, or a random split (LLaMA-MoE, arXiv
2406.16554).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PARTITIONS = ("rows", "coactivation", "random")
_ROUNDS = 6  # of k-means: assignments change little after that
_SWEEPS = 8  # of exchanges between pairs of clusters


def worth(hidden: Tensor, w_out: Tensor) -> Tensor:
    """What is lost of the output's variance where a neuron gives its mean only: `Var(h_i) * ||w_out[:, i]||^2` (FLAP,
    arXiv 2312.11983, with the whole column).

    Args:
        hidden: `[T, I]`, what the activation gives for T tokens. w_out: `[H, I]`.

    Returns:
        `[I]` in float32.
    """
    return hidden.float().var(0, correction=0) * w_out.float().square().sum(0)


def features(how: str, w_in: Tensor, hidden: Tensor, w_out: Tensor) -> Tensor:
    """What neurons are compared by, a unit vector each, `[I, D]`.

    Args:
        how: `rows` (of the gate, or of the one first matrix) or `coactivation` (sizes of what a neuron gives, token by
            token).
        w_in: `[F * I, H]`. hidden: `[T, I]`. w_out: `[H, I]`.
    """
    if how == "rows":
        return F.normalize(w_in[: w_out.shape[1]].float(), dim=1)
    return F.normalize((hidden.float().abs() * w_out.float().norm(dim=0)).T, dim=1)


def clusters(points: Tensor, count: int, seed: int) -> Tensor:
    """Balanced k-means: which of `count` clusters of equal size each point `[N, D]` belongs to, `[N]`; `count` divides
    N. Equal seeds give equal clusters."""
    generator = torch.Generator().manual_seed(seed)
    centers = points[torch.randperm(len(points), generator=generator)[:count]]
    assigned = torch.zeros(len(points), dtype=torch.int64)
    for _ in range(_ROUNDS):
        before = assigned
        assigned = balanced(torch.cdist(points, centers).square(), len(points) // count)
        if torch.equal(assigned, before):
            break
        sums = torch.zeros_like(centers).index_add_(0, assigned, points)
        centers = sums * (count / len(points))
    return assigned


def balanced(cost: Tensor, size: int) -> Tensor:
    """Assign N rows to columns, `size` to each, at little cost: a transportation problem.

    Rows are placed by regret, the one that would lose most first. Then pairs of clusters exchange rows, each pair as
    well as two clusters can; that comes within a thousandth of the optimum.

    Args:
        cost: `[N, E]` with N = E * size.
    """
    assigned = _by_regret(cost, size)
    count = cost.shape[1]
    for _ in range(_SWEEPS):
        changed = False
        for a in range(count):
            for b in range(a + 1, count):
                changed |= _exchange(cost, assigned, a, b)
        if not changed:
            break
    return assigned


def _by_regret(cost: Tensor, size: int) -> Tensor:
    """Rounds in which every free row asks for the cheapest column with room; a column takes those that would lose most
    elsewhere."""
    rows, count = cost.shape
    assigned = torch.full((rows,), -1)
    room = torch.full((count,), size)
    while bool((assigned < 0).any()):
        free = (assigned < 0).nonzero()[:, 0]
        left = cost[free].masked_fill(room <= 0, float("inf"))
        best = left.topk(min(2, count), dim=1, largest=False)
        regret = best.values[:, -1] - best.values[:, 0]
        for column in range(count):
            asking = (best.indices[:, 0] == column).nonzero()[:, 0]
            taken = asking[regret[asking].argsort(descending=True, stable=True)[: int(room[column])]]
            assigned[free[taken]] = column
            room[column] -= len(taken)
    return assigned


def _exchange(cost: Tensor, assigned: Tensor, a: int, b: int) -> bool:
    """Let two clusters of equal size exchange rows while that is cheaper; whether they did."""
    here, there = ((assigned == c).nonzero()[:, 0] for c in (a, b))
    leaving = (cost[here, b] - cost[here, a]).sort(stable=True)
    coming = (cost[there, a] - cost[there, b]).sort(stable=True)
    pairs = int((leaving.values + coming.values < -1e-6).sum())  # sums rise: the first ones are the cheapest pairs
    if not pairs:
        return False
    assigned[here[leaving.indices[:pairs]]] = b
    assigned[there[coming.indices[:pairs]]] = a
    return True
