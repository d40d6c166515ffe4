"""Which of many things gets how much, such as bits or experts: one program over all of them, the cheapest choice within
a budget."""

from __future__ import annotations

import math

from torch import Tensor

_GAP = 1e-6  # how far from the best a choice may be, of its cost


def cheapest(costs: Tensor, sizes: list[list[int]], budget: int) -> list[int]:
    """The choice for each of N things whose costs have the least sum, where sizes have no larger sum than the budget.

    Args:
        costs: `[N, C]`, finite. sizes: of each choice, whole numbers; those of one thing do not fall.
        budget: not below the sum of the least sizes.

    Returns:
        The column of each.
    """
    chosen = _spend_rest(_solve(costs.double(), sizes, budget), costs, sizes, budget)
    assert sum(own[k] for own, k in zip(sizes, chosen, strict=True)) <= budget
    return chosen


def _solve(costs: Tensor, sizes: list[list[int]], budget: int) -> list[int]:
    """The column of each row."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    rows, columns = costs.shape
    unit = math.gcd(*(size for own in sizes for size in own))
    each = csr_matrix((np.ones(rows * columns), (np.repeat(np.arange(rows), columns), np.arange(rows * columns))))
    total = csr_matrix(np.array([[size // unit for own in sizes for size in own]], dtype=float))
    rules = [LinearConstraint(each, 1, 1), LinearConstraint(total, -np.inf, budget // unit)]
    values = (costs - costs.amin(dim=1, keepdim=True)).flatten().numpy()  # what only one choice of a row does not share
    values = values / (values.mean() or 1.0)
    found = milp(
        values,
        integrality=np.ones(rows * columns),
        bounds=Bounds(0, 1),
        constraints=rules,
        options={"mip_rel_gap": _GAP},
    )
    assert found.success, found.message
    return [int(k) for k in found.x.reshape(rows, columns).argmax(axis=1)]


def _spend_rest(chosen: list[int], costs: Tensor, sizes: list[list[int]], budget: int) -> list[int]:
    """The same choice, with what it leaves of the budget given to things that are no worse off with more, in their
    order."""
    found, rest = list(chosen), budget - sum(own[k] for own, k in zip(sizes, chosen, strict=True))
    for row, (own, now) in enumerate(zip(sizes, chosen, strict=True)):
        wider = [k for k in range(now + 1, len(own)) if own[k] - own[now] <= rest and costs[row, k] <= costs[row, now]]
        if wider:
            found[row] = wider[-1]
            rest -= own[wider[-1]] - own[now]
    return found
