"""The grouped form against `moec::experts` itself, on every activation and every shape of routing."""

from __future__ import annotations

import pytest
import torch

from moec.backends.onnxruntime.experts.grouped import branches
from moec.dialect import Activation
from tests.backends.onnxruntime.blocks import (
    ACTIVATIONS,
    Experts,
    choice,
    error,
    experts_model,
    lowered,
    masked_model,
    ops,
    run,
    tokens,
)

experts_op = torch.ops.moec.experts.default
LIMIT = 1e-5


def grouped(
    e: Experts, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, score_before: bool = False
) -> torch.Tensor:
    """Both arrangements, which must agree; returns one of them."""
    found = []
    for optimize_for in ("latency", "throughput"):
        model, fact = lowered(experts_model(e, x.dim(), ids.shape[-1], score_before), optimize_for)
        assert fact["formulation"] == "grouped"
        found.append(run(model, x=x, ids=ids, weights=weights))
    if not found[0].isnan().any() and x.numel():
        assert error(found[0], found[1]) < {torch.float16: 1e-2, torch.float64: 1e-12}.get(e.dtype, LIMIT)
    return found[1]


def expected(
    e: Experts, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, score_before: bool = False
) -> torch.Tensor:
    return experts_op(x, ids, weights, *e.tensors, **e.activation.arguments(), score_before=score_before)  # type: ignore[no-any-return]


@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_activation(activation: Activation, biases: bool) -> None:
    e, x, routed = Experts(activation=activation, biases=biases), tokens(9), choice(9)
    assert error(grouped(e, x, *routed), expected(e, x, *routed)) < LIMIT


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_another_activation_is_seen(activation: Activation) -> None:
    e, x, routed = Experts(activation=activation), tokens(9), choice(9)
    others = [a for a in ACTIVATIONS if a != activation and a.gated == activation.gated]
    got = grouped(e, x, *routed)
    for other in others:
        e.activation = other
        assert error(got, expected(e, x, *routed)) > 3 * LIMIT


@pytest.mark.parametrize("leading", [(1,), (7,), (2, 5), (1, 1), (2, 2, 3), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("top_k", [1, 2, 6])
@pytest.mark.parametrize("score_before", [False, True], ids=["", "score_before"])
def test_every_shape(leading: tuple[int, ...], top_k: int, score_before: bool) -> None:
    e, x, routed = Experts(biases=True), tokens(*leading), choice(*leading, top_k=top_k)
    if x.numel():
        assert error(grouped(e, x, *routed, score_before), expected(e, x, *routed, score_before)) < LIMIT
    else:
        assert grouped(e, x, *routed, score_before).shape == x.shape


def test_score_before_is_not_score_after() -> None:
    e, x, routed = Experts(), tokens(7), choice(7)
    assert error(grouped(e, x, *routed, True), expected(e, x, *routed, False)) > 0.1


def test_gate_and_up_swapped_is_seen() -> None:
    e, x, routed = Experts(), tokens(7), choice(7)
    want = expected(e, x, *routed)
    e.w_in = e.w_in.unflatten(1, (2, -1)).flip(1).flatten(1, 2)
    assert error(grouped(e, x, *routed), want) > 0.1


@pytest.mark.parametrize("experts", [6, 40])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize(("biases", "score_before"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("optimize_for", ["latency", "throughput"])
def test_what_weighs_nothing_is_not_computed(
    experts: int, top_k: int, biases: bool, score_before: bool, optimize_for: str
) -> None:
    e, x = Experts(experts=experts, biases=biases), tokens(9)
    ids, weights = choice(9, top_k=top_k, experts=experts)
    if top_k == 1:
        weights = torch.linspace(0.1, 1, 9)[:, None]
    weights[4] = 0.1  # all that this token has
    small = weights < 0.3
    want = expected(e, x, ids, weights.masked_fill(small, 0.0), score_before)
    model, _ = lowered(masked_model(e, top_k, score_before), optimize_for)
    assert (
        error(run(model, x=x, ids=ids, weights=weights), want)
        < LIMIT
        < error(expected(e, x, ids, weights, score_before), want)
    )
    assert run(model, x=x[:0], ids=ids[:0], weights=weights[:0]).shape == x[:0].shape
    if not (biases and score_before):
        assert not run(model, x=x, ids=ids, weights=weights * 0 + 0.1).any(), (
            "nothing is chosen, and something comes out"
        )
    x[4] = torch.nan
    got = run(model, x=x, ids=ids, weights=weights)
    assert bool(got[4].isnan().any()) is (biases and score_before), "what was left out was computed"


def test_an_expert_that_makes_something_of_nothing_is_not_left_out() -> None:
    e, x, (ids, weights) = Experts(activation=Activation("sigmoid", gated=False)), tokens(9), choice(9)
    kept = weights.masked_fill(weights < 0.3, 0.0)
    assert not kept.all()
    model, _ = lowered(masked_model(e, 2, True), "latency")
    assert error(run(model, x=x, ids=ids, weights=weights), expected(e, x, ids, kept, True)) < LIMIT


def test_weights_as_they_are() -> None:
    """Negative, zero and large weights count as they stand."""
    e, x = Experts(), tokens(7)
    ids, weights = choice(7)
    weights = weights * 5 - 2
    weights[0] = 0
    assert error(grouped(e, x, ids, weights), expected(e, x, ids, weights)) < LIMIT
    assert error(grouped(e, x, ids, weights), expected(e, x, ids, weights.abs())) > 0.1


def test_an_expert_named_twice_counts_twice() -> None:
    e, x, ids = Experts(), tokens(3), torch.tensor([[1, 1], [2, 0], [5, 5]])
    weights = torch.tensor([[0.2, 0.5], [0.1, 0.3], [0.4, 0.4]])
    assert error(grouped(e, x, ids, weights), expected(e, x, ids, weights)) < LIMIT


def test_all_tokens_on_one_expert_and_nothing_computed_elsewhere() -> None:
    """NaN weights of experts that nobody chose do not reach the result, so they were not multiplied with anything."""
    e, x = Experts(), tokens(5)
    ids, weights = torch.full((5, 1), 3), torch.ones(5, 1)
    want = expected(e, x, ids, weights)
    others = [n for n in range(e.experts) if n != 3]
    e.w_in[others] = e.w_out[others] = float("nan")
    assert error(grouped(e, x, ids, weights), want) < LIMIT
    ids[0] = 0
    assert grouped(e, x, ids, weights)[0].isnan().all()


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (16, 3), (17, 3), (35, 1), (48, 5), (70, 3)])
@pytest.mark.parametrize("leading", [(1,), (40,), (0,)], ids=str)
def test_any_number_of_experts(experts: int, top_k: int, leading: tuple[int, ...]) -> None:
    """More than 16 are cut into branches, the last of them not full."""
    e, x, routed = (
        Experts(experts=experts, biases=True),
        tokens(*leading),
        choice(*leading, experts=experts, top_k=top_k),
    )
    for before in (False, True):
        got = grouped(e, x, *routed, before)
        assert error(got, expected(e, x, *routed, before) if x.numel() else x) < LIMIT


@pytest.mark.parametrize(
    ("joined", "counts"), [(True, [0, 0, 1, 1, 2, 8]), (False, [0, 0, 2, 4, 5, 32])], ids=["joined", "apart"]
)
def test_branches(joined: bool, counts: list[int]) -> None:
    assert [branches(n, joined) for n in (1, 16, 17, 64, 65, 512)] == counts


@pytest.mark.parametrize(("optimize_for", "experts"), [("latency", 80), ("throughput", 32)])
def test_branches_that_nobody_chose_are_skipped(optimize_for: str, experts: int) -> None:
    e, x, ids = Experts(experts=experts), tokens(3), torch.tensor([[1, 3], [2, 15], [0, 4]])
    model, fact = lowered(experts_model(e, 2, 2), optimize_for)
    assert ops(model).count("If") == 2 and "Gemm" not in ops(model) and "2 branches" in fact["why"]
    weights = torch.full((3, 2), 0.5)
    want = expected(e, x, ids, weights)
    e.w_in[experts // 2 :] = float("nan")
    assert error(run(lowered(experts_model(e, 2, 2), optimize_for)[0], x=x, ids=ids, weights=weights), want) < LIMIT


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float16, 1e-2), (torch.float64, 1e-12)], ids=["float16", "float64"]
)
def test_other_dtypes(dtype: torch.dtype, limit: float) -> None:
    e, x = (
        Experts(dtype=dtype, activation=Activation("silu", alpha=1.7, beta=1.0, limit=0.7), biases=True),
        tokens(2, 5).to(dtype),
    )
    ids, weights = choice(2, 5)
    for before in (False, True):
        assert (
            error(grouped(e, x, ids, weights.to(dtype), before), expected(e, x, ids, weights.to(dtype), before)) < limit
        )
    assert error(grouped(e, x, ids, weights.to(dtype)), expected(e, x, ids, 1.1 * weights.to(dtype))) > 3 * limit
