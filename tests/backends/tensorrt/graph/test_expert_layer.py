"""Both forms of standard operators are the experts that they stand for, under ONNX Runtime; wrong ones are seen."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.tensorrt.graph.moe import lower_experts
from moec.backends.tensorrt.policy import BuildPlan
from moec.dialect import Activation
from moec.errors import MoecError
from tests.backends.onnxruntime.blocks import ACTIVATIONS, Experts, choice, error, experts_model, ops, run, tokens
from tests.backends.onnxruntime.rounding import mix

FORMS = ("gathered", "dense", "either")
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2}


def lowered(model: ir.Model, form: str, **plan: object) -> ir.Model:
    (fact,) = lower_experts(model, BuildPlan("tensorrt-rtx", lowering=form, **plan))  # type: ignore[arg-type]
    assert fact["formulation"] == form and fact["memory_bytes"] > 0
    assert not {n.domain for n in model.graph} - {""}
    assert not {"NonZero", "If", "Loop", "ScatterND", "ScatterElements", "Split"} & set(ops(model))
    return model


def want(e: Experts, x: Tensor, ids: Tensor, weights: Tensor, before: bool = False) -> Tensor:
    return torch.ops.moec.experts(x, ids, weights, *e.tensors, **e.activation.arguments(), score_before=before)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_activation_with_biases(form: str, activation: Activation) -> None:
    e, x, (ids, weights) = Experts(activation=activation, biases=True), tokens(3, 5), choice(3, 5)
    got = run(lowered(experts_model(e, 3, 2), form), x=x, ids=ids, weights=weights)
    assert error(got, want(e, x, ids, weights)) < BOUNDS[torch.float32]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("form", FORMS)
def test_precisions_ranks_and_one_token(form: str, dtype: torch.dtype) -> None:
    e = Experts(dtype=dtype)
    for leading in ((17,), (2, 3, 4), (1, 1)):
        x, (ids, weights) = tokens(*leading).to(dtype), choice(*leading)
        weights = weights.to(dtype)
        got = run(lowered(experts_model(e, len(leading) + 1, 2), form), x=x, ids=ids, weights=weights)
        assert error(got, want(e, x, ids, weights)) < BOUNDS[dtype]


@pytest.mark.parametrize("form", FORMS)
def test_one_of_many_all_of_them_and_the_same_twice(form: str) -> None:
    e, x = Experts(), tokens(9)
    for top_k in (1, 6):
        ids, weights = choice(9, top_k=top_k)
        assert (
            error(
                run(lowered(experts_model(e, 2, top_k), form), x=x, ids=ids, weights=weights), want(e, x, ids, weights)
            )
            < 1e-4
        )
    ids, weights = torch.full((9, 2), 3), choice(9)[1]
    assert (
        error(run(lowered(experts_model(e, 2, 2), form), x=x, ids=ids, weights=weights), want(e, x, ids, weights))
        < 1e-4
    )


@pytest.mark.parametrize("activation", [Activation(), Activation("sigmoid", gated=False)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_weights_before_the_experts(form: str, activation: Activation) -> None:
    e, x = Experts(activation=activation, biases=True), tokens(7)
    scores = torch.randn(7, e.experts, generator=torch.Generator().manual_seed(3))
    top, ids = scores.topk(2)
    got = run(lowered(experts_model(e, 2, 2, score_before=True, weights_op="Sigmoid"), form), x=x, scores=scores)
    assert error(got, want(e, x, ids, top.sigmoid(), before=True)) < 1e-4
    assert error(got, want(e, x, ids, top.sigmoid())) > 1e-2, "weights after the experts are another function"


def test_experts_that_may_be_the_same_are_refused_where_they_would_be_wrong() -> None:
    with pytest.raises(MoecError, match="name one twice"):
        lowered(experts_model(Experts(), 2, 2, score_before=True), "dense")
    lowered(experts_model(Experts(), 2, 2, score_before=True), "gathered")


@pytest.mark.parametrize("form", FORMS)
def test_wrong_lowerings_are_seen(form: str) -> None:
    """The mutants: gate and up swapped, weights that do not sum to one, another expert."""
    e, x, (ids, weights) = Experts(), tokens(3, 5), choice(3, 5)
    got = run(lowered(experts_model(e, 3, 2), form), x=x, ids=ids, weights=weights)
    swapped = Experts()
    swapped.w_in = swapped.w_in.roll(swapped.inner, 1)
    assert error(got, want(swapped, x, ids, weights)) > 0.1
    assert error(got, want(e, x, ids, weights * 1.05)) > 1e-2
    assert error(got, want(e, x, (ids + 1) % e.experts, weights)) > 0.1


@pytest.mark.parametrize("form", ["gathered", "dense"])
def test_experts_of_several_widths_are_one_stack_in_the_widest(form: str) -> None:
    e, x, (ids, weights) = Experts(hidden=128, inner=64), tokens(9, hidden=128), choice(9)
    model = experts_model(e, 2, 2)
    model.graph.opset_imports[""] = 21
    mix(model, e, (4, 2, 2, 4, 2, 4), 64, False)
    lowered(model, form)
    codes = [t.const_value for n, t in model.graph.initializers.items() if n.endswith(".codes")]
    assert len(codes) == 3 and {c.dtype for c in codes if c is not None} == {ir.DataType.INT4}
    got = run(model, x=x, ids=ids, weights=weights)
    assert error(got, want(e, x, ids, weights)) < BOUNDS[torch.float32]
    e.w_in = e.w_in.flip(0)
    assert error(got, want(e, x, ids, weights)) > 0.1
