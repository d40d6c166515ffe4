"""`moec::route` against a naive reference: one token at a time, in numpy, with loops and sorting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from moec.dialect import Routing, route_reference

EXPERTS, TOKENS = 8, 40

# the rule, and the mean of its correction bias; with -1.8 every open expert is worse than a closed one that counts as
# zero
RULES: dict[str, tuple[Routing, float | None]] = {
    "mixtral": (Routing(2), None),
    "qwen2": (Routing(3, combine="scores"), None),
    "switch": (Routing(1, combine="scores"), None),
    "gpt-oss": (Routing(2, combine="softmax"), None),
    "granite": (Routing(3, "identity", "softmax"), None),
    "llama4": (Routing(1, "sigmoid", "scores"), None),
    "carved": (Routing(4, "identity", "ones"), None),
    "raw": (Routing(2, "identity", "scores"), None),
    "all": (Routing(EXPERTS), None),
    "deepseek-v2": (Routing(3, combine="scores", groups=4, top_groups=2, scale=16.0), None),
    "deepseek-v3": (Routing(3, "sigmoid", groups=4, top_groups=2, group_score="top2", scale=2.5, epsilon=1e-20), -0.2),
    "deepseek-v3, first code": (
        Routing(3, "sigmoid", groups=4, top_groups=3, group_score="top2", closed_as_zero=True),
        -1.8,
    ),
    "deepseek-v4": (Routing(2, "sqrt_softplus", scale=1.5, epsilon=1e-20), -0.2),
    "ernie": (Routing(2, floor=0.4), -0.2),
    "softmax of chosen, biased": (Routing(2, "sigmoid", "softmax"), -0.2),
    "softmax of chosen, grouped": (Routing(2, "softmax", "softmax", groups=2, top_groups=1), None),
    "epsilon and floor": (Routing(2, "sigmoid", epsilon=0.1, floor=1.5), None),
}


def naive(logits: np.ndarray, bias: np.ndarray | None, rule: Routing) -> dict[int, float]:
    """Expert -> weight of one token."""
    scores = _naive_scores(logits, rule.score)
    choice = scores + (0 if bias is None else bias)
    size = len(logits) // rule.groups
    groups = [choice[g * size : (g + 1) * size] for g in range(rule.groups)]
    value = [max(g) if rule.group_score == "max" or rule.groups == 1 else sum(sorted(g)[-2:]) for g in groups]
    open_groups = sorted(range(rule.groups), key=lambda g: value[g])[-rule.top_groups :]
    closed = 0.0 if rule.closed_as_zero else -math.inf
    choice = np.array([c if e // size in open_groups else closed for e, c in enumerate(choice)])
    chosen = sorted(range(len(logits)), key=lambda e: choice[e])[-rule.top_k :]
    if rule.combine == "softmax":
        weights = {e: math.exp(logits[e] - max(logits[chosen])) for e in chosen}
        weights = {e: w / sum(weights.values()) for e, w in weights.items()}
    elif rule.combine == "ones":
        weights = dict.fromkeys(chosen, 1.0)
    else:
        total = max(sum(scores[e] for e in chosen) + rule.epsilon, rule.floor) if rule.combine == "renormalize" else 1.0
        weights = {e: scores[e] / total for e in chosen}
    return {e: w * rule.scale for e, w in weights.items()}


def _naive_scores(logits: np.ndarray, score: str) -> np.ndarray:
    if score == "softmax":
        return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    if score == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    return np.sqrt(np.log1p(np.exp(logits))) if score == "sqrt_softplus" else logits


def inputs(bias_mean: float | None, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(TOKENS, EXPERTS, generator=generator, dtype=torch.float64) * 2).to(dtype)
    return logits, None if bias_mean is None else torch.randn(EXPERTS, generator=generator, dtype=torch.float64).to(
        dtype
    ) * 0.5 + bias_mean


def error(rule: Routing, expected: Routing, bias_mean: float | None, dtype: torch.dtype = torch.float64) -> float:
    """Largest difference of a weight of any expert, of the operator with one rule and the naive reference with
    another."""
    logits, bias = inputs(bias_mean, dtype)
    weights, ids = torch.ops.moec.route(logits, bias, **rule.arguments())
    got = torch.zeros(TOKENS, EXPERTS, dtype=torch.float64).scatter_add(1, ids, weights.double())
    want = torch.zeros_like(got)
    for t in range(TOKENS):
        for e, w in naive(
            logits[t].double().numpy(), None if bias is None else bias.double().numpy(), expected
        ).items():
            want[t, e] = w
    return float((got - want).abs().max())


@pytest.mark.parametrize("name", RULES)
def test_every_kind(name: str) -> None:
    rule, bias_mean = RULES[name]
    assert error(rule, rule, bias_mean) < 1e-12


@pytest.mark.parametrize("name", RULES)
def test_another_rule_is_seen(name: str) -> None:
    rule, bias_mean = RULES[name]
    changed = (
        {"scale": rule.scale * 1.001}
        if rule.combine == "ones"
        else {"combine": "scores" if rule.combine != "scores" else "renormalize"}
    )
    if rule.top_k in (1, EXPERTS) or rule.combine == "softmax":
        changed = {"scale": rule.scale * 1.001}
    assert error(Routing(**{**rule.arguments(), **changed}), rule, bias_mean) > 1e-5


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("deepseek-v3", "groups", 1),
        ("deepseek-v3", "group_score", "max"),
        ("deepseek-v3", "top_groups", 3),
        ("deepseek-v3, first code", "closed_as_zero", False),
        ("ernie", "floor", 0.0),
        ("epsilon and floor", "epsilon", 0.0),
        ("deepseek-v4", "score", "sigmoid"),
    ],
)
def test_every_option_counts(name: str, option: str, value: object) -> None:
    rule, bias_mean = RULES[name]
    assert error(Routing(**{**rule.arguments(), option: value}), rule, bias_mean) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_computed_in_float32(dtype: torch.dtype) -> None:
    logits, _ = inputs(None, dtype)
    weights, ids = torch.ops.moec.route(logits, None, top_k=2)
    assert weights.dtype == torch.float32 and ids.dtype == torch.int64
    assert error(Routing(2), Routing(2), None, dtype) < 1e-6 < error(Routing(2), Routing(2, epsilon=1e-5), None, dtype)


def test_shapes_and_empty_batches() -> None:
    weights, ids = torch.ops.moec.route(
        torch.randn(3, 5, EXPERTS), torch.zeros(EXPERTS), top_k=3, groups=2, top_groups=1
    )
    assert weights.shape == ids.shape == (3, 5, 3)
    assert torch.ops.moec.route(torch.randn(0, EXPERTS), None, top_k=3)[1].shape == (0, 3)


def test_arguments_round_trip() -> None:
    for rule, _ in RULES.values():
        assert Routing.of({**rule.arguments(), "activation": "silu"}) == rule


def test_the_reference_exports_with_dynamic_shapes() -> None:
    class Model(torch.nn.Module):
        def forward(self, logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            return route_reference(logits, bias, RULES["deepseek-v3"][0])

    tokens = torch.export.Dim("tokens")
    program = torch.export.export(
        Model(), (torch.randn(5, EXPERTS), torch.randn(EXPERTS)), dynamic_shapes=({0: tokens}, None), strict=True
    )
    logits, bias = torch.randn(11, EXPERTS), torch.randn(EXPERTS)
    for got, want in zip(program.module()(logits, bias), Model()(logits, bias), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", RULES)
def test_gradient(name: str) -> None:
    rule, bias_mean = RULES[name]
    logits, bias = inputs(bias_mean)
    assert torch.autograd.gradcheck(
        lambda x: torch.ops.moec.route(x, bias, **rule.arguments())[0], logits[:6].requires_grad_(), fast_mode=True
    )


def test_the_bias_has_no_gradient() -> None:
    logits, bias = inputs(0.0)
    assert bias is not None
    weights, _ = torch.ops.moec.route(logits.requires_grad_(), bias.requires_grad_(), top_k=2, score="sigmoid")
    weights.square().sum().backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0 and bias.grad is None


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3", "carved"])
def test_operator_is_well_formed(name: str) -> None:
    rule, bias_mean = RULES[name]
    logits, bias = inputs(bias_mean)
    assert set(
        torch.library.opcheck(torch.ops.moec.route.default, (logits.requires_grad_(), bias), rule.arguments()).values()
    ) == {"SUCCESS"}
