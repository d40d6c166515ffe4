"""The router's kernel in Triton's interpreter: every rule of `Routing`, against the reference in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moec.dialect import Routing, route_reference
from moec.dialect.routing import COMBINES, SCORES
from moec.kernels import launch
from tests.dialect.test_routing import RULES, inputs
from tests.kernels.accuracy import MARGIN, distance
from tests.kernels.conftest import Interpret


def logits_of(tokens: int = 6, experts: int = 12) -> Tensor:
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(3)) * 2


def by_expert(weights: Tensor, ids: Tensor, experts: int) -> Tensor:
    """`[T, E]`: ties may be chosen in any order."""
    return torch.zeros(len(ids), experts, dtype=torch.float64).scatter_add(1, ids, weights.double())


def error(interpret: Interpret, logits: Tensor, bias: Tensor | None, rule: Routing, wanted: Routing) -> float:
    """The kernel's error with `rule` against `wanted` in float64, in units of the reference's in float32 (of half a
    rounding at least)."""
    weights, ids = interpret(launch.route, logits, bias, rule)
    assert weights.dtype == torch.float32 and all(len(set(row)) == rule.top_k for row in ids.tolist())
    exact = by_expert(*route_reference(logits.double(), bias, wanted), logits.shape[-1])
    plain = by_expert(*route_reference(logits, bias, wanted), logits.shape[-1])
    return distance(by_expert(weights, ids, logits.shape[-1]), exact) / max(distance(plain, exact), 2.0**-25)


@pytest.mark.parametrize("name", RULES)
def test_every_known_router(interpret: Interpret, name: str) -> None:
    rule, bias_mean = RULES[name]
    logits, bias = inputs(bias_mean, torch.float32)
    wrong = replace(rule, scale=rule.scale * 1.001)
    assert error(interpret, logits[:12], bias, rule, rule) <= MARGIN < error(interpret, logits[:12], bias, rule, wrong)


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("score", SCORES)
def test_every_score_and_combination(interpret: Interpret, score: str, combine: str, biased: bool) -> None:
    rule = Routing(3, score, combine)
    logits, bias = logits_of(), torch.linspace(-0.4, 0.4, 12).roll(5) if biased else None
    wrong = replace(rule, combine="ones" if combine != "ones" else "scores")
    assert error(interpret, logits, bias, rule, rule) <= MARGIN < error(interpret, logits, bias, rule, wrong)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("deepseek-v3", {"group_score": "max"}),
        ("deepseek-v3", {"top_groups": 3}),
        ("deepseek-v3", {"groups": 2}),
        ("deepseek-v3", {"score": "softmax"}),
        (("deepseek-v3, first code"), {"closed_as_zero": False}),
        ("ernie", {"floor": 0.0}),
        ("epsilon and floor", {"epsilon": 0.0}),
        ("gpt-oss", {"top_k": 1}),
    ],
)
def test_every_option_counts(interpret: Interpret, name: str, change: dict[str, Any]) -> None:
    rule, bias_mean = RULES[name]
    logits, bias = inputs(bias_mean, torch.float32)
    changed = replace(rule, **change)
    assert error(interpret, logits, bias, changed, changed) <= MARGIN < error(interpret, logits, bias, changed, rule)


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 1, 1), (1, 5, 5), (3, 100, 1), (2, 384, 8), (2, 7, 3)])
def test_every_shape(interpret: Interpret, tokens: int, experts: int, top_k: int) -> None:
    logits, rule = logits_of(tokens, experts), Routing(top_k, combine="scores")
    assert (
        error(interpret, logits, None, rule, rule)
        <= MARGIN
        < error(interpret, logits, None, rule, replace(rule, score="sigmoid"))
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_logits(interpret: Interpret, dtype: torch.dtype) -> None:
    """Computed with in float32. Ties are frequent here: equal logits may be taken in any order."""
    logits = logits_of().to(dtype)
    weights, ids = interpret(launch.route, logits, None, Routing(3))
    wanted, _ = route_reference(logits.float(), None, Routing(3))
    torch.testing.assert_close(weights, wanted)
    torch.testing.assert_close(logits.gather(-1, ids), logits.topk(3).values)


def test_ties_take_the_first(interpret: Interpret) -> None:
    _, ids = interpret(launch.route, torch.zeros(1, 6), None, Routing(3))
    assert ids.tolist() == [[0, 1, 2]]


def test_softplus_of_the_far_negative(interpret: Interpret) -> None:
    """log(1 + e) would be 0, and renormalising 0 / 0."""
    logits = torch.tensor([[-30.0, -31.0, -60.0, 25.0], [-80.0, -31.0, -60.0, -30.0]])
    for rule in (Routing(2, "sqrt_softplus"), Routing(4, "sqrt_softplus", "scores")):
        assert (
            error(interpret, logits, None, rule, rule)
            <= MARGIN
            < error(interpret, logits, None, rule, replace(rule, score="sigmoid"))
        )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("value", ["nan", "-inf", "inf"])
def test_whatever_the_logits_ids_are_experts(interpret: Interpret, value: str, groups: int) -> None:
    logits = logits_of(3)
    logits[0], logits[1, ::2] = float(value), float(value)
    weights, ids = interpret(launch.route, logits, None, Routing(4, "sigmoid", groups=groups))
    assert ((ids >= 0) & (ids < 12)).all() and all(len(set(row)) == 4 for row in ids.tolist())
    assert weights[2].isfinite().all()
