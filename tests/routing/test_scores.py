"""Scores as shares, and the score that explains a router's weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moec.dialect import Routing, route_reference
from moec.routing.scores import score_that_gives, shares_by, shares_of

LOGITS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus", "identity"])
def test_shares_sum_to_one(score: str) -> None:
    assert torch.allclose(shares_of(LOGITS, score).sum(-1), torch.ones(40), atol=1e-6)


def test_shares_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0]])
    want = torch.sigmoid(logits) / torch.sigmoid(logits).sum()
    assert torch.allclose(shares_by(logits, Routing(1, "sigmoid")), want)
    want = F.softplus(logits).sqrt() / F.softplus(logits).sqrt().sum()
    assert torch.allclose(shares_by(logits, Routing(1, "sqrt_softplus")), want)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("combine", ["renormalize", "scores"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_score_is_told_by_the_weights(score: str, combine: str, dtype: torch.dtype) -> None:
    weights, ids = route_reference(LOGITS, torch.linspace(0, 0.2, 6), Routing(3, score, combine, scale=2.5))
    assert score_that_gives(LOGITS, ids, weights.to(dtype)) == score


def test_a_softmax_over_the_chosen_is_one_over_all() -> None:
    weights, ids = route_reference(LOGITS, None, Routing(2, "identity", "softmax"))
    assert score_that_gives(LOGITS, ids, weights) == "softmax"


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
def test_one_chosen_expert_is_told_by_its_score_alone(score: str) -> None:
    weights, ids = route_reference(LOGITS, None, Routing(1, score, "scores"))
    assert score_that_gives(LOGITS, ids, weights) == score
    weights, ids = route_reference(LOGITS, None, Routing(1, score, "renormalize"))
    assert score_that_gives(LOGITS, ids, weights) is None  # it counts 1 by any rule


def test_weights_that_no_score_gives_are_not_explained() -> None:
    weights, ids = route_reference(LOGITS, None, Routing(2))
    assert score_that_gives(LOGITS * 1.3, ids, weights) is None  # a temperature
    assert score_that_gives(LOGITS, ids, weights.flip(-1)) is None
