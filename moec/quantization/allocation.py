"""Which of many things gets how many bits: one program over all of them, the cheapest choice within a budget of
bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

from moec.errors import MoecError

_GAP = 1e-6  # how far from the best a choice may be, of its cost


def allocate(
    costs: Tensor, counts: Sequence[int], widths: Sequence[int], budget_bits: float, where: str = ""
) -> list[int]:
    """Choose one width for each of N things such that the sum of their costs is least and the mean width is not above a
    budget.

    A 0-1 linear program, solved by HiGHS (Huangfu and Hall 2018): all layers compete for the same bytes, which is what
    makes it better than a budget a layer. Things that cost nothing at any width, such as experts that no token reached,
    get what the others leave. Equal arguments give equal choices.

    Args:
        costs: `[N, len(widths)]`, finite.
        counts: numbers in each thing.
        widths: bits that may be chosen, ascending, two or more.
        budget_bits: mean bits of all numbers together.
        where: for errors.

    Returns:
        The width of each.

    Raises:
        MoecError: M203 when no choice fits the budget, or every one does.
    """
    if not widths[0] <= budget_bits <= widths[-1]:
        what = f"budget_bits={budget_bits} is not between the widths {', '.join(map(str, widths))}"
        raise MoecError("M203", what, where, f"choose a mean from {widths[0]} to {widths[-1]} bits, or other widths")
    sizes = [[count * width // 8 for width in widths] for count in counts]
    budget = math.floor(Fraction(budget_bits) * sum(counts) / 8)
    chosen = _spend_rest(_solve(costs.double(), sizes, budget), costs, sizes, budget)
    assert sum(own[k] for own, k in zip(sizes, chosen, strict=True)) <= budget
    return [widths[k] for k in chosen]


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
