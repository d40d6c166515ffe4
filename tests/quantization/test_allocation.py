"""The cheapest choice within a budget, against every choice there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.quantization.allocation import allocate


def random_costs(rows: int, widths: int, seed: int) -> Tensor:
    """Falling with the width, over five orders of magnitude."""
    g = torch.Generator().manual_seed(seed)
    scale = 10 ** (5 * torch.rand(rows, 1, generator=g, dtype=torch.float64))
    return scale * torch.rand(rows, widths, generator=g, dtype=torch.float64).sort(dim=1, descending=True).values


def total(costs: Tensor, widths: list[int], chosen: list[int]) -> float:
    return float(sum(costs[n, widths.index(b)] for n, b in enumerate(chosen)))


def best(costs: Tensor, counts: list[int], widths: list[int], budget: float) -> float:
    allowed = budget * sum(counts)
    fits = (
        c
        for c in itertools.product(widths, repeat=len(counts))
        if sum(b * n for b, n in zip(c, counts, strict=True)) <= allowed
    )
    return min(total(costs, widths, list(c)) for c in fits)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("widths", "counts", "budget"),
    [([2, 4], [1024] * 9, 3.0), ([2, 4, 8], [768, 1024, 256] * 2, 4.5), ([4, 8], [64, 4096, 64, 64], 4.3)],
)
def test_nothing_within_the_budget_is_cheaper(widths: list[int], counts: list[int], budget: float, seed: int) -> None:
    costs = random_costs(len(counts), len(widths), seed)
    chosen = allocate(costs, counts, widths, budget)
    assert sum(b * n for b, n in zip(chosen, counts, strict=True)) <= budget * sum(counts)
    assert total(costs, widths, chosen) == pytest.approx(best(costs, counts, widths, budget), rel=1e-5)
    assert allocate(costs, counts, widths, budget) == chosen


def test_both_ends_of_the_range_are_uniform() -> None:
    costs = random_costs(5, 2, 0)
    assert allocate(costs, [64] * 5, [2, 4], 2.0) == [2] * 5 and allocate(costs, [64] * 5, [2, 4], 4.0) == [4] * 5


def test_things_that_cost_nothing_get_what_fits() -> None:
    chosen = allocate(torch.zeros(4, 2, dtype=torch.float64), [64] * 4, [2, 4], 3.0)
    assert sum(chosen) == 12


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_goes_to_things_that_lose_nothing_by_it(seed: int) -> None:
    costs = random_costs(16, 2, seed)
    costs[:10] = 0  # no token reached them
    chosen = allocate(costs, [64] * 16, [2, 4], 3.0)
    assert sum(chosen) == 48 and chosen[10:] == [4] * 6 and sum(c == 4 for c in chosen[:10]) == 2
    costs[:10, 1] = 1  # with more they would be worse off
    assert allocate(costs, [64] * 16, [2, 4], 3.0) == [2] * 10 + [4] * 6


def test_a_thousand_experts_take_no_time_to_speak_of() -> None:
    chosen = allocate(random_costs(1000, 2, 0), [2**20] * 1000, [2, 4], 3.0)
    assert sum(chosen) == 3000


@pytest.mark.parametrize("budget", [1.9, 4.1, 0, float("nan")])
def test_a_budget_that_no_width_meets(budget: float) -> None:
    with pytest.raises(MoecError, match="M203") as error:
        allocate(random_costs(3, 2, 0), [64] * 3, [2, 4], budget)
    assert "2 to 4" in str(error.value)
