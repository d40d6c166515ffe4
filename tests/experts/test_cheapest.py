"""The cheapest choice of one column a row, whatever the sizes mean."""

from __future__ import annotations

import itertools

import pytest
import torch

from moec.experts.cheapest import cheapest


@pytest.mark.parametrize("seed", range(3))
def test_no_choice_that_fits_is_cheaper(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(5, 4, generator=generator, dtype=torch.float64).sort(dim=1, descending=True).values
    sizes = [[3 * k + row for k in range(4)] for row in range(5)]
    chosen = cheapest(costs, sizes, 30)

    def total(columns: tuple[int, ...]) -> float:
        return float(sum(costs[n, k] for n, k in enumerate(columns)))

    fitting = [c for c in itertools.product(range(4), repeat=5) if sum(sizes[n][k] for n, k in enumerate(c)) <= 30]
    assert tuple(chosen) in fitting
    assert total(tuple(chosen)) == pytest.approx(min(map(total, fitting)), rel=1e-6)
    assert total(tuple(chosen)) < 0.95 * total((1, 1, 1, 1, 1))  # which fits too
