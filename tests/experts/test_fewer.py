"""Fewer experts: the best of each token, weights in their old sum, and the scale that is best."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.dialect import Routing
from moec.experts.fewer import fewer, with_fewer
from moec.program.moe_call import EXPERTS, MoeCall


def call(combine: str, seed: int = 0) -> MoeCall:
    generator = torch.Generator().manual_seed(seed)
    x, w_in, w_out = (torch.randn(*s, generator=generator) for s in ((40, 8), (6, 12, 8), (6, 8, 12)))
    weights, ids = torch.ops.moec.route(torch.randn(40, 6, generator=generator), None, top_k=3, combine=combine)
    args = (x, ids, weights, w_in, w_out)
    return MoeCall.evaluated(EXPERTS, args, {"activation": "relu", "gated": False})


def output(given: MoeCall, ids: Tensor, weights: Tensor) -> Tensor:
    value: Tensor = torch.ops.moec.experts(
        given.x, ids, weights, given.w_in, given.w_out, None, None, **given.activation.arguments()
    )
    return value


@pytest.mark.parametrize("combine", ["renormalize", "scores", "softmax"])
def test_no_other_scale_is_nearer_and_errors_are_those_that_are_there(combine: str) -> None:
    calls, rule = [call(combine, 0), call(combine, 1)], Routing(3, combine=combine)
    found = fewer(calls, 2, rule, combine)
    left = [with_fewer(c, 2, rule, combine, found.rule.scale) for c in calls]
    whole = torch.cat([output(c, c.ids, c.weights) for c in calls])
    parts = torch.cat([output(c, **kept) for c, kept in zip(calls, left, strict=True)])
    error = float((parts - whole).square().sum())
    assert found.errors[1] == pytest.approx(error / float(whole.square().sum()), rel=1e-4)
    for factor in (0.9, 1.1):
        assert float((factor * parts - whole).square().sum()) > error
    assert found.errors[0] > found.errors[1] > found.errors[2] == 0 and found.rule.scale != 1
    assert (found.rule.top_k, found.rule.combine) == (2, combine)


def test_weights_that_have_one_sum_have_it_still_and_others_are_as_they_were() -> None:
    for combine, kept in (("renormalize", True), ("scores", False)):
        given = call(combine)
        left = with_fewer(given, 2, Routing(3, combine=combine), combine)
        first = given.weights[:, :2]
        wanted = first / first.sum(-1, keepdim=True) if kept else first
        assert torch.allclose(left["weights"], wanted, atol=1e-6) and torch.equal(left["ids"], given.ids[:, :2])


def test_raw_scores_can_be_renormalised_as_the_new_rule_says() -> None:
    """What is measured is what `moec::route` computes by the rule that is found."""
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    rule = Routing(3, combine="scores", scale=2.5)
    weights, ids = torch.ops.moec.route(logits, None, **rule.arguments())
    given = call("scores").given(ids=ids, weights=weights)
    found = fewer([given], 2, rule, "renormalize")
    left = with_fewer(given, 2, rule, "renormalize", found.rule.scale)
    wanted, chosen = torch.ops.moec.route(logits, None, **found.rule.arguments())
    assert found.rule.scale not in (1, 2.5) and torch.equal(left["ids"], chosen)
    assert torch.allclose(left["weights"], wanted, atol=1e-6)


def test_all_experts_are_as_they_were() -> None:
    given, rule = call("renormalize"), Routing(3)
    found = fewer([given], 3, rule, "renormalize")
    assert found.rule == rule
    assert torch.allclose(with_fewer(given, 3, rule, "renormalize", 1.0)["weights"], given.weights, atol=1e-6)
    assert set(found.facts(rule)) == {"scale", "combine", "error at 1", "error at 2"}
