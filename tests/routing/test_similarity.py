"""Cosines between experts."""

from __future__ import annotations

import pytest
import torch

from moec.routing.similarity import of_outputs, of_weights


def test_copies_are_one_and_orthogonal_experts_zero() -> None:
    rows = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    copies = of_outputs(rows.expand(3, -1, -1))
    assert copies is not None and copies.mean == pytest.approx(1) and copies.of == "outputs"
    apart = of_weights([torch.eye(3)[:, :, None]])
    assert apart is not None and apart.mean == pytest.approx(0) and apart.of == "weights"


def test_weights_of_several_matrices_are_one_vector() -> None:
    first = torch.tensor([[[3.0]], [[3.0]], [[0.0]]])
    other = torch.tensor([[[4.0]], [[-4.0]], [[1.0]]])
    found = of_weights([first, other])
    # (3, 4), (3, -4), (0, 1): (9 - 16) / 25, 4 / 5, -4 / 5
    assert found is not None and found.mean == pytest.approx((-7 / 25) / 3, abs=1e-6)
    assert found.most == pytest.approx(0.8) and found.pair == (0, 2)


def test_one_expert_is_like_nothing() -> None:
    assert of_weights([torch.ones(1, 2, 2)]) is None and of_weights([]) is None
