"""Experts gathered on the device, in graphs made for CUDA and run by the CPU's kernels, against the dialect: on both
sides of where routed rows become more than experts."""

from __future__ import annotations

import itertools

import pytest
import torch

from moec.dialect import Activation, Routing
from tests.backends.onnxruntime.blocks import (
    ACTIVATIONS,
    Experts,
    choice,
    error,
    experts_model,
    lowered,
    moe_model,
    ops,
    reference,
    run,
    tokens,
)
from tests.backends.onnxruntime.experts.test_native_rule import KERNEL
from tests.backends.onnxruntime.rounding import quantize_model

LIMIT = 1e-5
HOST = {"If", "Loop", "NonZero", "Split", "ReduceMax"}  # what reads data on the host, or takes cuDNN
PRODUCTS = [a for a in ACTIVATIONS if a not in KERNEL]


def packed(e: Experts, grid: tuple[int, int, bool], rule: Routing, names: tuple[str, ...] = ("w_in", "w_out")):  # type: ignore[no-untyped-def]
    """The lowered model, what is said of it; `e` gets the weights that the packed ones stand for."""
    model = moe_model(e, 2, rule)
    for name, value in quantize_model(model, list(names), *grid).items():
        setattr(e, name, value)
    return lowered(model, "latency", "cuda")


@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("activation", PRODUCTS, ids=str)
def test_an_activation_that_the_operator_lacks(activation: Activation, biases: bool) -> None:
    e = Experts(activation=activation, biases=biases)
    model, fact = lowered(moe_model(e, 2, Routing(2)), "latency", "cuda")
    assert fact["formulation"] == "gathered, plain products" and "gathered" in fact["why"]
    assert not (HOST - ({"Split"} if activation.gated else set())) & set(ops(model))
    for count in (1, 2, 3, 9):
        x = tokens(count)
        got = run(model, x=x)
        assert error(got, reference(e, x, Routing(2))) < LIMIT
        assert error(got, reference(e, x, Routing(3))) > 0.01
    for other in [a for a in ACTIVATIONS if a != activation and a.gated == activation.gated]:
        e.activation = other
        assert error(got, reference(e, x, Routing(2))) > 3 * LIMIT


@pytest.mark.parametrize("activation", [Activation(), Activation("gelu", gated=False)], ids=["kernel", "products"])
@pytest.mark.parametrize("grid", list(itertools.product((2, 4, 8), (16, 32), (False, True))), ids=str)
def test_every_grid_in_float32(grid: tuple[int, int, bool], activation: Activation) -> None:
    e = Experts(hidden=64, inner=64, activation=activation, biases=True)
    plain = reference(e, tokens(9, hidden=64), Routing(2))
    model, fact = packed(e, grid, Routing(2))
    assert fact["formulation"] == f"gathered, {'plain products' if activation.name == 'gelu' else 'kernel'}"
    assert fact["kernel"] == "GatherBlockQuantized" and fact["bits"] == str(grid[0]) and not HOST & set(ops(model))
    for count in (1, 9):
        x = tokens(count, hidden=64)
        assert error(run(model, x=x), reference(e, x, Routing(2))) < LIMIT
    assert error(run(model, x=x), plain) > 10 * LIMIT, "the weights were rounded"


@pytest.mark.parametrize("names", [("w_in",), ("w_out",)], ids=str)
def test_one_packed_matrix(names: tuple[str, ...]) -> None:
    e, x = Experts(hidden=64, inner=64), tokens(3, hidden=64)
    model, fact = packed(e, (4, 32, False), Routing(2, combine="scores", scale=2.5), names)
    assert fact["formulation"] == "gathered, kernel" and "only one" in fact["why"]
    assert error(run(model, x=x), reference(e, x, Routing(2, combine="scores", scale=2.5))) < LIMIT
    assert error(run(model, x=x), reference(e, x, Routing(2, scale=2.5))) > 0.01


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("before", [False, True], ids=["", "score_before"])
def test_weights_that_are_negative_or_zero_and_experts_that_repeat(rank: int, before: bool) -> None:
    e = Experts(biases=True)
    model, fact = lowered(experts_model(e, rank, 2, before), "latency", "cuda")
    assert fact["formulation"] == "gathered, plain products"
    for count in (2, 8):
        x = tokens(*(count, 3)[: rank - 1])
        ids, weights = choice(*x.shape[:-1])
        weights = weights * torch.tensor([1.0, -2.0])
        if not before:  # twice the same expert; before the experts their weights do not add up
            ids[0] = ids[0].flip(-1) if rank == 3 else ids[0, 1]
            weights[-1, ..., -1] = 0
        got, rule = run(model, x=x, ids=ids, weights=weights), e.activation.arguments()
        want = torch.ops.moec.experts(x, ids, weights, *e.tensors, **rule, score_before=before)
        assert error(got, want) < LIMIT
        other = torch.ops.moec.experts(x, ids, weights, *e.tensors, **rule, score_before=not before)
        assert error(got, other) > 0.01


@pytest.mark.parametrize("activation", [Activation("relu2", gated=False), Activation()], ids=["products", "kernel"])
def test_no_tokens(activation: Activation) -> None:
    e = Experts(hidden=64, inner=64, activation=activation, biases=True)
    model, _ = packed(e, (4, 32, False), Routing(2))
    assert run(model, x=tokens(0, hidden=64)).shape == (0, 64)


def test_what_a_token_did_not_choose_may_overflow() -> None:
    e = Experts(activation=Activation("relu2", gated=False), dtype=torch.float16)
    e.w_in[3] *= 400  # squared, more than half precision holds
    x = tokens(9).half()
    e.router[3] = -10 * x.float().mean(0).half()
    ids, weights = torch.tensor([[0, 1]] * 8 + [[1, 2]]), torch.full((9, 2), 0.5).half()
    model, _ = lowered(experts_model(e, 2, 2), "latency", "cuda")
    got = run(model, x=x, ids=ids, weights=weights)
    want = torch.ops.moec.experts(x, ids, weights, *e.tensors, **e.activation.arguments())
    assert bool(got.isfinite().all()) and error(got, want) < 1e-2


def test_for_throughput_rows_are_grouped() -> None:
    _, fact = lowered(moe_model(Experts(activation=Activation("gelu")), 2, Routing(2)), "throughput", "cuda")
    assert fact["formulation"] == "grouped"
