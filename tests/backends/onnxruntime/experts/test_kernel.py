"""The MoE operator (its CPU kernel, in graphs made for CUDA) against the dialect: each rule called native or portable
is computed."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from moec.dialect import Activation, Routing
from tests.backends.onnxruntime.blocks import (
    ACTIVATIONS,
    Experts,
    error,
    experts_model,
    lowered,
    moe_model,
    ops,
    reference,
    run,
    tokens,
)
from tests.backends.onnxruntime.experts.test_native_rule import KERNEL, NATIVE

LIMIT = 1e-5


@pytest.mark.parametrize("provider", ["cuda", "cpu"])
@pytest.mark.parametrize("routing", NATIVE, ids=str)
def test_native_rules(routing: Routing, provider: str) -> None:
    e, x, bias = Experts(), tokens(2, 6), tokens(1, hidden=6)[0]
    model, fact = lowered(moe_model(e, 3, routing, bias), "latency", provider)
    got = run(model, x=x)
    assert fact["formulation"] == ("kernel" if provider == "cuda" else "grouped")
    assert error(got, reference(e, x, routing, bias)) < LIMIT
    if routing.top_k != 6:  # over all experts, "renormalize" and "scores" are the same
        flip = {"scores": "renormalize", "renormalize": "scores", "softmax": "scores"}[routing.combine]
        wrong = Routing(routing.top_k, "softmax", flip, scale=routing.scale)
        assert error(got, reference(e, x, wrong, bias)) > 0.01
    assert error(got, reference(e, x, routing)) > 0.01  # without the router's bias


def between(model: ir.Model, view: bool) -> ir.Model:
    """The block after and before another operator, as in a model; without a view of its rows on request."""
    graph = model.graph
    (x,), (y,) = [v for v in graph.inputs if v.name == "x"], graph.outputs
    (node,) = [n for n in graph if n.op_type == "MoE"]
    before, after = ir.node("Neg", [x]), ir.node("Neg", [y])
    again = ir.node("Neg", [before.outputs[0]])
    after.outputs[0].type, after.outputs[0].shape = y.type, y.shape
    y.name, after.outputs[0].name = "before", y.name
    for reader, at in list(x.uses()):
        reader.replace_input_with(at, again.outputs[0]) if reader is not before else None
    if not view:
        node.replace_input_with(0, again.outputs[0])
    graph.insert_before(graph[0], [before, again])
    graph.append(after)
    graph.outputs[0] = after.outputs[0]
    return model


@pytest.mark.parametrize("combine", ["scores", "renormalize"])
def test_rows_are_not_written_over_while_they_are_read(combine: str) -> None:
    """ONNX Runtime's CPU operator does so with scores, where its input comes from an operator and ends in it."""
    e, x, routing = Experts(), tokens(9), Routing(2, "softmax", combine)
    models = [between(lowered(moe_model(e, 2, routing), "latency", "cuda")[0], view) for view in (True, False)]
    right, overwritten = (error(-run(model, x=x), reference(e, x, routing)) for model in models)
    assert right < LIMIT
    assert (overwritten > 0.1) == (combine == "scores")


@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("activation", KERNEL, ids=str)
def test_activations(activation: Activation, biases: bool) -> None:
    e, x = Experts(activation=activation, biases=biases), tokens(9)
    model, _ = lowered(moe_model(e, 2, Routing(2)), "latency", "cuda")
    got = run(model, x=x)
    assert ops(model).count("MoE") == 1
    assert error(got, reference(e, x, Routing(2))) < LIMIT
    for other in (a for a in ACTIVATIONS if a != activation and a.gated == activation.gated):
        e.activation = other
        assert error(got, reference(e, x, Routing(2))) > 3 * LIMIT


def test_gate_and_up_swapped_is_seen() -> None:
    e, x = Experts(), tokens(9)
    want = reference(e, x, Routing(2))
    e.w_in = e.w_in.unflatten(1, (2, -1)).flip(1).flatten(1, 2)
    assert error(run(lowered(moe_model(e, 2, Routing(2)), "latency", "cuda")[0], x=x), want) > 0.1


@pytest.mark.parametrize("leading", [(1,), (7,), (2, 5), (2, 2, 3), (0,), (2, 0)], ids=str)
def test_every_shape(leading: tuple[int, ...]) -> None:
    e, x = Experts(biases=True), tokens(*leading)
    got = run(lowered(moe_model(e, x.dim(), Routing(2)), "latency", "cuda")[0], x=x)
    assert error(got, reference(e, x, Routing(2)) if x.numel() else x) < LIMIT


@pytest.mark.parametrize("leading", [(1,), (7,), (2, 5), (0,)], ids=str)
@pytest.mark.parametrize("top_k", [1, 2, 6])
@pytest.mark.parametrize("op", ["Softmax", "Sigmoid", "Exp", "Relu"])
def test_portable_routing(op: str, top_k: int, leading: tuple[int, ...]) -> None:
    """Any non-negative weights: normalised or not, zero too."""
    e, x, scores = Experts(biases=True), tokens(*leading), tokens(*leading, hidden=6, seed=5) * 3
    model, fact = lowered(experts_model(e, x.dim(), top_k, weights_op=op), "latency", "cuda")
    assert fact["formulation"] == "kernel, portable routing"
    top, ids = scores.topk(top_k, -1)
    weights = {"Softmax": lambda t: t.softmax(-1), "Sigmoid": torch.sigmoid, "Exp": torch.exp, "Relu": torch.relu}[op](
        top
    )
    got, rule = run(model, x=x, scores=scores), e.activation.arguments()
    if not x.numel():
        assert got.shape == x.shape
        return
    assert error(got, torch.ops.moec.experts(x, ids, weights, *e.tensors, **rule)) < LIMIT
    if top_k > 1:
        assert error(got, torch.ops.moec.experts(x, ids, weights.flip(-1), *e.tensors, **rule)) > 0.01


@pytest.mark.parametrize("score_before", [False, True], ids=["", "score_before"])
def test_one_expert_a_token_takes_any_weight(score_before: bool) -> None:
    e, x, ids, weights = (
        Experts(biases=True),
        tokens(5),
        torch.tensor([[0], [3], [3], [5], [1]]),
        torch.tensor([[0.5], [-2.0], [0.0], [1.0], [30.0]]),
    )
    model, fact = lowered(experts_model(e, 2, 1, score_before), "latency", "cuda")
    got, rule = run(model, x=x, ids=ids, weights=weights), e.activation.arguments()
    assert fact["formulation"] == "kernel, portable routing"
    assert error(got, torch.ops.moec.experts(x, ids, weights, *e.tensors, **rule, score_before=score_before)) < LIMIT
    assert error(got, torch.ops.moec.experts(x, ids, weights, *e.tensors, **rule, score_before=not score_before)) > 0.01


def test_float16() -> None:
    e, x = Experts(dtype=torch.float16), tokens(9).half()
    got = run(lowered(moe_model(e, 2, Routing(2, scale=0.5)), "latency", "cuda")[0], x=x)
    assert error(got, reference(e, x, Routing(2, scale=0.5))) < 1e-2
    assert error(got, reference(e, x, Routing(2, scale=0.52))) > 3e-2
