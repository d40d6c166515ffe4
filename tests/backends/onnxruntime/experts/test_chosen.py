"""Any rule told to the MoE operator in logits alone (its CPU kernel, in graphs made for CUDA), against `moec::moe`."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.onnx.tensors import add_initializer
from moec.backends.onnxruntime.experts.native_rule import has_logits, is_native
from moec.dialect import Activation, Routing
from moec.weights.lazy import from_tensor
from tests.backends.onnxruntime.blocks import Experts, error, lowered, moe_model, ops, run, tokens
from tests.backends.onnxruntime.rounding import quantize_model

LIMIT = 1e-5
DEEPSEEK = Routing(3, "sigmoid", groups=4, top_groups=2, group_score="top2", scale=2.5, epsilon=1e-20)
RULES = [
    (Routing(2, "sigmoid"), False),
    (Routing(2, "sigmoid", "scores", scale=1.5), False),
    (Routing(1, "sigmoid", "scores"), False),
    (Routing(2, "identity", "ones"), False),
    (Routing(3, "softmax", "ones", scale=0.5), False),
    (Routing(2, "softmax", epsilon=1e-20), False),
    (Routing(2, "sigmoid", floor=1e-12), True),
    (Routing(2, "softmax", "scores"), True),
    (Routing(2, "softmax", "softmax"), True),
    (Routing(2, "sigmoid", "softmax"), True),
    (Routing(2, "sigmoid", "ones"), True),
    (Routing(1), True),
    (Routing(3, "softmax", "scores", groups=4, top_groups=2, scale=1.5), False),
    (DEEPSEEK, False),
    (DEEPSEEK, True),
    (replace(DEEPSEEK, closed_as_zero=True), True),
    (replace(DEEPSEEK, combine="scores", group_score="max"), True),
]


def experts(**changes: object) -> Experts:
    return Experts(experts=8, biases=True, **changes)  # type: ignore[arg-type]


def biased(e: Experts, rank: int, rule: Routing, bias: bool, before: bool = False) -> tuple[ir.Model, Tensor | None]:
    """A block with a correction bias that changes the choice."""
    model = moe_model(e, rank, rule)
    node = next(n for n in model.graph if n.domain == "moec")
    value = torch.linspace(0.6, -0.1, e.experts).roll(3) if bias else None
    if value is not None:
        node.replace_input_with(3, add_initializer(model.graph, from_tensor(value, "correction"), "correction"))
    node.attributes["score_before"] = ir.AttrInt64("score_before", int(before))
    return model, value


def reference(e: Experts, x: Tensor, rule: Routing, bias: Tensor | None, before: bool = False) -> Tensor:
    return torch.ops.moec.moe(  # type: ignore[no-any-return]
        x, e.router, None, bias, *e.tensors, **rule.arguments(), **e.activation.arguments(), score_before=before
    )


@pytest.mark.parametrize(("rule", "bias"), RULES, ids=str)
def test_every_rule(rule: Routing, bias: bool) -> None:
    e, x = experts(), tokens(4, 5)
    assert has_logits(rule, e.activation, False) and not is_native(rule, bias, e.activation, False)
    model, correction = biased(e, 3, rule, bias)
    model, fact = lowered(model, "latency", "cuda")
    assert fact["formulation"] == "kernel, routing before it"
    assert not {"ReduceMax", "ScatterElements", "Sigmoid"} & set(ops(model)), "on CUDA these take cuDNN or more kernels"
    got = run(model, x=x)
    assert error(got, reference(e, x, rule, correction)) < LIMIT
    if bias:
        assert error(got, reference(e, x, rule, None)) > 0.01
    for wrong in (replace(rule, scale=rule.scale * 1.01), replace(rule, top_k=rule.top_k + 1)):
        assert error(got, reference(e, x, wrong, correction)) > 1e-3
    if rule.groups > 1:
        assert error(got, reference(e, x, replace(rule, top_groups=rule.groups), correction)) > 0.01


@pytest.mark.parametrize("leading", [(1,), (0,), (2, 0), (2, 2, 3)], ids=str)
def test_every_shape(leading: tuple[int, ...]) -> None:
    e, x = experts(), tokens(*leading)
    for rule in (DEEPSEEK, Routing(2, "sigmoid", "scores"), Routing(2)):
        model, correction = biased(e, x.dim(), rule, rule is DEEPSEEK)
        got = run(lowered(model, "latency", "cuda")[0], x=x)
        assert error(got, reference(e, x, rule, correction) if x.numel() else x) < LIMIT


@pytest.mark.parametrize("rule", [Routing(1, "sigmoid", "scores", scale=2.0), Routing(1, "sigmoid")], ids=str)
def test_one_weight_before_the_experts(rule: Routing) -> None:
    e, x = experts(), tokens(7)
    model, _ = biased(e, 2, rule, False, before=True)
    got = run(lowered(model, "latency", "cuda")[0], x=x)
    assert error(got, reference(e, x, rule, None, before=True)) < LIMIT
    if rule.combine == "scores":
        assert error(got, reference(e, x, rule, None)) > 0.01


def test_scores_that_the_runtime_has_as_zero() -> None:
    """Its `Sigmoid` is zero from -18 on, on the CPU."""
    e, x, rule, low = experts(), tokens(4, 5), Routing(2, "sigmoid"), torch.full((8,), -25.0)
    model, fact = lowered(moe_model(e, 3, rule, low), "latency", "cuda")
    want = torch.ops.moec.moe(x, e.router, low, None, *e.tensors, **rule.arguments())
    assert fact["formulation"] == "kernel, routing before it"
    assert error(run(model, x=x), want) < LIMIT
    assert error(run(model, x=x), reference(e, x, rule, None)) > 1e-3


@pytest.mark.parametrize("combine", ["scores", "renormalize"])
def test_packed_experts(combine: str) -> None:
    e, x = Experts(experts=8, hidden=128, inner=128, dtype=torch.float16), tokens(7, hidden=128).half()
    rule = replace(DEEPSEEK, combine=combine)
    model, correction = biased(e, 2, rule, True)
    for name, value in quantize_model(model, ["w_in", "w_out"], 4, 32, False).items():
        setattr(e, name, value)
    model, fact = lowered(model, "latency", "cuda")
    assert fact["kernel"] == "QMoE" and "ReduceMax" not in ops(model)
    got = run(model, x=x)
    assert error(got, reference(e, x, rule, correction)) < 2e-2
    assert error(got, reference(e, x, replace(rule, scale=2.8), correction)) > 6e-2


def test_which_rules_have_logits() -> None:
    plain = Activation()
    assert not has_logits(Routing(2, "sqrt_softplus"), plain, False), "its logarithm takes three kernels more"
    assert not has_logits(Routing(2, "identity", "scores"), plain, False), "a weight may be negative"
    assert not has_logits(Routing(2, "sigmoid", epsilon=1e-3), plain, False)
    assert not has_logits(Routing(2, "sigmoid"), Activation("gelu"), False)
    assert not has_logits(Routing(2, "sigmoid", "scores"), plain, True), "two weights before the experts"
