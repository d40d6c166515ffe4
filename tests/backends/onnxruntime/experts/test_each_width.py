"""Experts of several widths: the engine computes what the expression of the program says, in every form, for every
expert."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnxruntime.experts.lower import lower_experts
from moec.backends.onnxruntime.packed.quantized import lower_quantized, set_accuracy
from moec.backends.onnxruntime.packed.unpacking import unpack_products
from moec.dialect import Activation, Routing
from tests.backends.onnxruntime.blocks import (
    Experts,
    choice,
    error,
    experts_model,
    moe_model,
    ops,
    reference,
    run,
    tokens,
)
from tests.backends.onnxruntime.rounding import mix

LIMIT, ROUNDED_LIMIT = 1e-5, 0.1
MIXED = (4, 2, 2, 4, 2, 4)
THREE = (8, 2, 2, 4, 8, 4)


def experts(**options: Any) -> Experts:
    return Experts(hidden=128, inner=64, **options)


def built(
    e: Experts, routing: Routing, bits: tuple[int, ...], block: int = 32, zeros: bool = False, **options: Any
) -> tuple[ir.Model, dict[str, Any]]:
    model = moe_model(e, 2, routing)
    mix(model, e, bits, block, zeros)
    (fact,) = lower_experts(model, **options)
    assert not lower_quantized(model), "nothing but the block reads them"
    assert not any(n.domain == "moec" for n in model.graph) and {n.op_type for n in model.graph} >= {"Gemm"}
    return model, fact


@pytest.mark.parametrize("optimize_for", ["latency", "throughput"])
@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
def test_eight_bits_among_them_are_grouped(biases: bool, optimize_for: str) -> None:
    e, x = experts(biases=biases), tokens(9, hidden=128)
    model, fact = built(e, Routing(2), THREE, zeros=True, optimize_for=optimize_for)
    assert (
        fact["formulation"] == "grouped"
        and fact["kernel"] == "MatMulNBits"
        and fact["experts"] == {"2": 2, "4": 2, "8": 2}
    )
    unpack_products(model)
    assert error(run(model, x=x), reference(e, x, Routing(2))) < LIMIT


@pytest.mark.parametrize("bits", [MIXED, THREE], ids=str)
def test_where_rounding_is_allowed_each_width_is_an_operator(bits: tuple[int, ...]) -> None:
    e, x = experts(biases=True), tokens(9, hidden=128)
    model, fact = built(e, Routing(3), bits, rounded=True)
    assert ops(model).count("QMoE") == len(set(bits)) and fact["formulation"] == "kernel for each width"
    set_accuracy(model, 4)
    got, want = run(model, x=x), reference(e, x, Routing(3))
    assert LIMIT < error(got, want) < ROUNDED_LIMIT
    e.w_out = e.w_out.flip(0)
    assert error(got, reference(e, x, Routing(3))) > 2 * ROUNDED_LIMIT


@pytest.fixture
def as_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 in both forms on the CPU, where 2 bits are exact too, if slow; CUDA's form computes the same
    there."""
    monkeypatch.setattr("moec.backends.onnxruntime.experts.qmoe._why_not_cuda", lambda *_: "")
    monkeypatch.setattr("moec.backends.onnxruntime.experts.qmoe.SLOW_NARROW", 0)


@pytest.mark.usefixtures("as_stored")
@pytest.mark.parametrize("combine", ["softmax", "scores"])
@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_operators_of_one_width_add_up_exactly(provider: str, combine: str) -> None:
    routing = Routing(2, combine=combine)
    e, x = experts(biases=True), tokens(9, hidden=128)
    model, fact = built(e, routing, MIXED, 16, rounded=True, provider=provider)
    nodes = [n for n in model.graph if n.op_type == "QMoE"]
    assert len(nodes) == 2 and fact["formulation"] == "kernel for each width"
    assert [len(n.inputs) == 15 for n in nodes] == [provider == "cpu"] * 2, "CUDA reads no weights, so it is given none"
    got, want = run(model, x=x), reference(e, x, routing)
    assert error(got, want) < LIMIT


@pytest.mark.usefixtures("as_stored")
@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_tokens_whose_experts_all_have_one_width(provider: str) -> None:
    e, x = experts(), tokens(6, hidden=128)
    model = experts_model(e, 2, 2, weights_op="Softplus")
    mix(model, e, MIXED, 16, False)
    lower_experts(model, provider=provider, rounded=True)
    lower_quantized(model)
    scores = torch.full((6, 6), -3.0)
    for token, pair in enumerate([(0, 3), (3, 5), (1, 2), (2, 4), (0, 1), (4, 5)]):
        scores[token, list(pair)] = torch.tensor([2.0, 1.0])
    top, ids = scores.topk(2)
    want = torch.ops.moec.experts(x, ids, torch.nn.functional.softplus(top), *e.tensors, **e.activation.arguments())
    assert error(run(model, x=x, scores=scores), want) < LIMIT


def test_scores_before_the_experts() -> None:
    e, x = experts(activation=Activation()), tokens(7, hidden=128)
    for options in ({}, {"rounded": True}):
        mixed = experts()
        model = experts_model(mixed, 2, 1, score_before=True)
        mix(model, mixed, MIXED, 16, False)
        (fact,) = lower_experts(model, **options)
        lower_quantized(model)
        ids, weights = choice(7, top_k=1)
        weights = torch.rand(7, 1, generator=torch.Generator().manual_seed(0))
        want = torch.ops.moec.experts(x, ids, weights, *mixed.tensors, **e.activation.arguments(), score_before=True)
        assert error(run(model, x=x, ids=ids, weights=weights), want) < LIMIT, fact


def test_no_tokens() -> None:
    e = experts()
    for options in ({}, {"rounded": True}, {"provider": "cuda", "rounded": True}):
        model, _ = built(experts(), Routing(2), MIXED, 16, **options)
        assert run(model, x=tokens(0, hidden=128)).shape == (0, 128)
    assert e.hidden == 128
