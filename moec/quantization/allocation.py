"""Which of many things gets how many bits: one program over all of them, the cheapest choice within a budget of
bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

from moec.errors import MoecError
from moec.experts.cheapest import cheapest


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
    return [widths[k] for k in cheapest(costs, sizes, budget)]
