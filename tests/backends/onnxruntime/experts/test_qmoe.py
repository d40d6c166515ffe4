"""Experts from packed bytes against `moec::moe` and `moec::experts` on `moec::dequantize`: the QMoE operator and the
grouped form."""

from __future__ import annotations

import itertools

import pytest
import torch

from moec.backends.onnxruntime.packed.quantized import lower_quantized, set_accuracy
from moec.dialect import Activation, Routing
from tests.backends.onnxruntime.blocks import (
    ACTIVATIONS,
    Experts,
    error,
    experts_model,
    lowered,
    moe_model,
    reference,
    run,
    tokens,
)
from tests.backends.onnxruntime.rounding import quantize_model

LIMIT, ROUNDED_LIMIT = 1e-5, 0.1
BOTH = ["w_in", "w_out"]
GRIDS = list(itertools.product((2, 4, 8), (16, 32, 64, 128), (False, True)))


def experts(activation: Activation | None = None, biases: bool = False, dtype: torch.dtype = torch.float32) -> Experts:
    return Experts(hidden=128, inner=128, activation=activation or Activation(), biases=biases, dtype=dtype)


def built(
    e: Experts,
    grid: tuple[int, int, bool],
    routing: Routing,
    optimize_for: str = "latency",
    provider: str = "cpu",
    names: list[str] | None = None,
):  # type: ignore[no-untyped-def]
    """The lowered model, what is said of it; `e` gets the weights that the packed ones stand for."""
    model = moe_model(e, 2, routing)
    for name, value in quantize_model(model, names or BOTH, *grid).items():
        setattr(e, name, value)
    return lowered(model, optimize_for, provider)


@pytest.mark.parametrize("optimize_for", ["latency", "throughput"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_grid(grid: tuple[int, int, bool], optimize_for: str) -> None:
    e, x = experts(), tokens(9, hidden=128)
    plain = reference(e, x, Routing(2))
    model, fact = built(e, grid, Routing(2), optimize_for)
    assert (
        (fact["kernel"] == "QMoE") == (grid[0] == 2 or (grid[0] == 4 and optimize_for == "latency"))
        and fact["bits"] == str(grid[0])
        and fact["block"] == str(grid[1])
    )
    got, want = run(model, x=x), reference(e, x, Routing(2))
    assert error(got, want) < LIMIT
    assert error(got, plain) > 10 * LIMIT, "the weights were rounded"


@pytest.mark.parametrize("bits", [2, 4])
def test_nibbles_in_another_order_are_seen(bits: int) -> None:
    e, x = experts(), tokens(9, hidden=128)
    model, _ = built(e, (bits, 16, False), Routing(2))
    per_byte = 8 // bits
    turned = lambda t: t.unflatten(-1, (-1, per_byte)).flip(-1).flatten(-2)  # noqa: E731
    e.w_in, e.w_out = turned(e.w_in), turned(e.w_out)
    assert error(run(model, x=x), reference(e, x, Routing(2))) > 0.1


@pytest.mark.parametrize("grid", [(4, 32, True), (8, 32, True)], ids=["kernel", "grouped"])
def test_gate_and_up_swapped_is_seen(grid: tuple[int, int, bool]) -> None:
    e, x = experts(), tokens(9, hidden=128)
    model, _ = built(e, grid, Routing(2))
    e.w_in = e.w_in.unflatten(1, (2, -1)).flip(1).flatten(1, 2)
    assert error(run(model, x=x), reference(e, x, Routing(2))) > 0.1


@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_activation(bits: int, activation: Activation, biases: bool) -> None:
    e, x = experts(activation, biases), tokens(9, hidden=128)
    model, _ = built(e, (bits, 32, False), Routing(2))
    got = run(model, x=x)
    assert error(got, reference(e, x, Routing(2))) < LIMIT
    for other in [a for a in ACTIVATIONS if a != activation and a.gated == activation.gated]:
        e.activation = other
        assert error(got, reference(e, x, Routing(2))) > 3 * LIMIT


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
@pytest.mark.parametrize("combine", ["renormalize", "scores", "softmax"])
@pytest.mark.parametrize("top_k", [1, 2, 6])
def test_native_rules(combine: str, top_k: int, provider: str) -> None:
    e, x, routing = (
        experts(dtype=torch.float16 if provider == "cuda" else torch.float32),
        tokens(7, hidden=128),
        Routing(top_k, combine=combine, scale=2.5),
    )
    x, limit = x.to(e.w_in.dtype), 2e-2 if provider == "cuda" else LIMIT
    model, fact = built(e, (4, 32, False), routing, provider=provider)
    assert fact["kernel"] == "QMoE" and (fact["formulation"] == "kernel") == (combine != "scores")
    got = run(model, x=x)
    assert error(got, reference(e, x, routing)) < limit
    if top_k != 6:
        flip = {"scores": "renormalize", "renormalize": "scores", "softmax": "scores"}[combine]
        assert error(got, reference(e, x, Routing(top_k, combine=flip, scale=2.5))) > 3 * limit


@pytest.mark.parametrize("score_before", [False, True], ids=["", "score_before"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("rank", [2, 3])
def test_given_weights(rank: int, top_k: int, score_before: bool) -> None:
    e, x = experts(), tokens(*(5, 3)[: rank - 1], hidden=128)
    model = experts_model(e, rank, top_k, score_before, "Sigmoid")
    for name, value in quantize_model(model, BOTH, 4, 32, True).items():
        setattr(e, name, value)
    model, fact = lowered(model, "latency")
    assert (fact["kernel"] == "QMoE") == (top_k == 1 or not score_before)
    scores = torch.randn(*x.shape[:-1], 6, generator=torch.Generator().manual_seed(3))
    top, ids = scores.topk(top_k, dim=-1)
    want = torch.ops.moec.experts(x, ids, top.sigmoid(), *e.tensors, score_before=score_before)
    got = run(model, x=x, scores=scores)
    assert error(got, want) < LIMIT
    assert (
        error(got, torch.ops.moec.experts(x, ids, torch.softmax(top, -1), *e.tensors, score_before=score_before))
        > 100 * LIMIT
    )


def test_no_tokens() -> None:
    for grid in ((4, 32, False), (8, 32, False)):
        assert run(built(experts(), grid, Routing(2))[0], x=tokens(0, hidden=128)).shape == (0, 128)


def test_one_packed_matrix_is_grouped() -> None:
    e, x = experts(), tokens(9, hidden=128)
    model, fact = built(e, (4, 32, False), Routing(2), names=["w_out"])
    assert fact["formulation"] == "grouped" and "only one" in fact["why"]
    assert error(run(model, x=x), reference(e, x, Routing(2))) < LIMIT


def test_weights_of_unknown_sign_are_grouped() -> None:
    model = experts_model(experts(), 2, 2)
    quantize_model(model, BOTH, 4, 32, False)
    _, fact = lowered(model, "latency")
    assert fact["formulation"] == "grouped" and "non-negative" in fact["why"]


@pytest.mark.parametrize(
    ("grid", "dtype", "inner", "why"),
    [
        ((4, 32, False), torch.float32, 128, "half precision"), ((4, 16, False), torch.float16, 128, "no blocks of 16"),
        ((4, 32, False), torch.float16, 96, "multiples of 64"), ((8, 64, True), torch.float16, 128, ""),
    ],
)  # fmt: skip
def test_what_cuda_takes(grid: tuple[int, int, bool], dtype: torch.dtype, inner: int, why: str) -> None:
    _, fact = built(Experts(hidden=128, inner=inner, dtype=dtype), grid, Routing(2), provider="cuda")
    assert (fact["formulation"] == "gathered, kernel") == bool(why) and why in fact["why"]


@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_activations_are_near(bits: int) -> None:
    from moec.backends.onnxruntime.experts.lower import lower_experts

    e, x = experts(), tokens(64, hidden=128)
    model = moe_model(e, 2, Routing(2))
    for name, value in quantize_model(model, BOTH, bits, 32, False).items():
        setattr(e, name, value)
    (fact,) = lower_experts(model, rounded=True)
    assert lower_quantized(model) == []
    set_accuracy(model, 4)
    assert fact["kernel"] == "QMoE"
    got, want = run(model, x=x), reference(e, x, Routing(2))
    assert 1e-3 < error(got, want) < ROUNDED_LIMIT
    e.w_in = e.w_in.unflatten(1, (2, -1)).flip(1).flatten(1, 2)
    assert error(got, reference(e, x, Routing(2))) > ROUNDED_LIMIT
