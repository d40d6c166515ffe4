"""Clusters of neurons: equal in size, close to the cheapest there are, and made of neurons that belong together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.dialect import Activation
from moec.experts.dense_network import Dense
from moec.experts.neuron_groups import (
    balanced,
    by_first_centers,
    clusters,
    features,
    in_texts,
    indicators,
    variation,
    worth,
)


def cost_of(cost: Tensor, assigned: Tensor) -> float:
    return float(cost.gather(1, assigned[:, None]).sum())


def optimum(cost: Tensor, size: int) -> float:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cost.repeat_interleave(size, 1).numpy())
    return float(cost.repeat_interleave(size, 1)[rows, columns].sum())


@pytest.mark.parametrize("seed", range(3))
def test_an_assignment_is_balanced_and_nearly_the_cheapest(seed: int) -> None:
    cost = torch.rand(96, 6, generator=torch.Generator().manual_seed(seed))
    assigned = balanced(cost, 16)
    assert assigned.bincount(minlength=6).tolist() == [16] * 6
    best, by_turn = optimum(cost, 16), cost_of(cost, torch.arange(96) % 6)
    assert cost_of(cost, assigned) <= 1.03 * best < 1.03 * by_turn
    assert by_turn > 1.5 * best  # the bound tells them apart


def test_neurons_of_one_kind_come_together_whatever_their_number() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 12, generator=generator)
    points = (kinds.repeat(8, 1) + 0.1 * torch.randn(32, 12, generator=generator)).contiguous()
    found = clusters(torch.nn.functional.normalize(points, dim=1), 4, seed=3)
    for kind in range(4):
        assert len(set(found[kind::4].tolist())) == 1
    assert torch.equal(found, clusters(torch.nn.functional.normalize(points, dim=1), 4, seed=3))


def test_worth_is_the_variance_that_a_neuron_brings_to_the_output() -> None:
    hidden, w_out = torch.randn(50, 6), torch.randn(5, 6)
    found = worth(hidden.var(0, correction=0), w_out)
    for i in range(6):
        lost = torch.outer(hidden[:, i] - hidden[:, i].mean(), w_out[:, i])
        assert float(found[i]) == pytest.approx(float(lost.square().sum(1).mean()), rel=1e-4)


def test_features_compare_rows_of_the_gate_or_sizes_token_by_token() -> None:
    w_in, hidden, w_out = torch.randn(12, 4), torch.randn(7, 6), torch.randn(4, 6)
    assert torch.allclose(features("rows", w_in, hidden, w_out)[2], w_in[2] / w_in[2].norm())
    turned = features("coactivation", w_in, -hidden, w_out)
    assert torch.equal(turned, features("coactivation", w_in, hidden, w_out)) and turned.shape == (6, 7)


def test_a_tokens_ten_largest_neurons_are_marked_whatever_the_length_of_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    w_in, x = torch.randn(24, 6, generator=generator), torch.randn(50, 6, generator=generator)
    marks = indicators(Dense(w_in, None, torch.zeros(6, 24), Activation("relu", gated=False)), x)
    assert marks.shape == (24, 50) and set(marks.sum(0).tolist()) == {10.0}
    longer = Dense(w_in * torch.rand(24, 1, generator=generator), None, torch.zeros(6, 24), Activation("relu", False))
    assert torch.equal(indicators(longer, 3 * x), marks)


def test_neurons_marked_together_come_to_the_center_of_their_kind() -> None:
    marks = torch.zeros(8, 40)
    marks[::2, :20], marks[1::2, 20:] = 1, 1
    marks[2:, ::7] = 1 - marks[2:, ::7]
    found = by_first_centers(marks, marks.mean(1) + torch.tensor([1.0, 1.0] + [0.0] * 6), 2)
    assert len(set(found[::2].tolist())) == len(set(found[1::2].tolist())) == 1 and found[0] != found[1]


def test_neurons_that_differ_from_text_to_text_make_fewer_experts_shared() -> None:
    steady, varied = torch.ones(640, 8), torch.ones(640, 8)
    varied[:480, :4] = 0
    assert variation(in_texts(steady))[2] == pytest.approx(0.7) and variation(in_texts(varied))[2] == pytest.approx(
        0.45
    )
    mean, by_text, _ = variation(in_texts(varied))
    assert mean.tolist() == [0.25] * 4 + [1.0] * 4 and by_text.shape == (8, 40)
