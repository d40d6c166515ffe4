"""Which neurons of a dense feed-forward network become one expert: what neurons are worth, and clusters of equal size.

The methods are those that the literature of carving names: rows of the first matrix cluster by direction (MoEfication,
arXiv 2110.01786), neurons that are large for the same tokens belong together, those that are among a token's largest
(CMoE, arXiv 2502.04416), or that are active in the same texts (ExpertWeaver, arXiv 2602.15521), or a random split
(LLaMA-MoE, arXiv 2406.16554).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.experts.dense_network import Dense

PARTITIONS = ("rows", "coactivation", "indicator", "variation", "random")
_MARKED = 10  # neurons a token (CMoE's K_a)
_TEXTS = 64  # parts of the text that stand for ExpertWeaver's samples
_VARIES, _MOST_SHARED, _LEAST_SHARED = 0.6, 0.7, 0.2  # its threshold, and its bounds of the shared part
_ROUNDS = 6  # of k-means: assignments change little after that
_SWEEPS = 8  # of exchanges between pairs of clusters


def worth(variance: Tensor, w_out: Tensor) -> Tensor:
    """What is lost of the output's variance where a neuron gives its mean only: `Var(h_i) * ||w_out[:, i]||^2` (FLAP,
    arXiv 2312.11983, with the whole column).

    Args:
        variance: `[I]`, of what the activation gives for a text's tokens. w_out: `[H, I]`.

    Returns:
        `[I]` in float32.
    """
    return variance.float() * w_out.float().square().sum(0)


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


def indicators(dense: Dense, x: Tensor) -> Tensor:
    """Which neurons are among the 10 largest of a token, 0 or 1, `[I, T]`; tokens and the rows of the first matrix have
    unit length for that, as CMoE's code has it.

    Args:
        x: `[T, H]`.
    """
    rows = F.normalize(dense.w_in.float(), dim=1)
    hidden = dense.activation(F.linear(F.normalize(x.float(), dim=1), rows)).abs()
    top = hidden.topk(min(_MARKED, hidden.shape[1]), dim=1).indices
    return torch.zeros_like(hidden).scatter_(1, top, 1.0).T.contiguous()


def rate(marks: Tensor) -> Tensor:
    """How often each neuron is marked, `[I]`: CMoE's score of shared ones."""
    return marks.mean(1)


def by_first_centers(points: Tensor, score: Tensor, count: int) -> Tensor:
    """CMoE's clusters: the columns of the `count` neurons of the highest score are the centers, and one balanced
    assignment is all. Returns which cluster each point `[N, T]` belongs to."""
    centers = points[score.topk(count).indices]
    return balanced(torch.cdist(points, centers).square(), len(points) // count)  # of 0 and 1: the Hamming distance


def in_texts(x: Tensor) -> tuple[Tensor, ...]:
    """A text's tokens `[T, H]`, in its order, in equal parts that stand for texts of their own."""
    return x.tensor_split(min(_TEXTS, max(1, len(x) // 16)))


def variation(gates: Iterable[Tensor]) -> tuple[Tensor, Tensor, float]:
    """ExpertWeaver's view of neurons: how active they are in each of several texts.

    Args:
        gates: for each text, `[T, I]`, what the gate gives.

    Returns:
        The mean activity `[I]`; the activity by text `[I, N]`; and the part of all experts that is shared, from 0.7
        where few neurons vary to 0.2 where all do.
    """
    active = torch.stack([each.float().abs().mean(0) for each in gates], 1)
    mean = active.mean(1)
    varies = active.std(1, correction=0) / mean.clamp(min=1e-12) > _VARIES
    return mean, active, _MOST_SHARED - (_MOST_SHARED - _LEAST_SHARED) * float(varies.float().mean())


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
