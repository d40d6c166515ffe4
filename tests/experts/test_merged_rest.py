"""What exists once is the regression that it says, and leaves models nearer to themselves than a mean."""

from __future__ import annotations

import torch

from moec.experts.merged_rest import _counted, _solved


def test_a_matrix_is_the_least_squares_solution_of_all_models() -> None:
    generator = torch.Generator().manual_seed(0)
    stretched = [torch.linspace(0.1, 3, 6), torch.linspace(3, 0.1, 6)]
    x = [torch.randn(500, 6, generator=generator) * s for s in stretched]
    own = [torch.randn(4, 6, generator=generator) for _ in x]

    def error(matrix: torch.Tensor) -> float:
        return sum(float((v @ (matrix - w).T).square().mean()) for v, w in zip(x, own, strict=True))

    found = _solved([v.double().T @ v.double() / len(v) for v in x], own)
    mean = (own[0] + own[1]) / 2
    assert error(found) < 0.7 * error(mean) and found.dtype == torch.float32
    for k in range(6):  # no small step makes it better
        for step in (-0.01, 0.01):
            other = found.clone()
            other[0, k] += step
            assert error(other) > error(found) - 1e-5


def test_rows_of_a_table_are_means_by_their_texts() -> None:
    own = [torch.zeros(3, 2), torch.ones(3, 2)]
    found = _counted([torch.tensor([10.0, 0, 3]), torch.tensor([0.0, 0, 9])], own)
    assert float(found[0, 0]) < 0.02 and float(found[1, 0]) == 0.5 and abs(float(found[2, 0]) - 0.75) < 0.01
