"""Which form a block gets, what is said about it, and what stays in the graph."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.tensors import WeightTensor
from moec.backends.onnxruntime.experts.lower import lower_experts
from moec.dialect import Activation, Routing
from moec.errors import MoecError
from tests.backends.onnxruntime.blocks import Experts, error, experts_model, lowered, moe_model, ops, run, tokens, value

PRODUCTS = "gathered, plain products"


@pytest.mark.parametrize(
    ("activation", "provider", "formulation"),
    [
        (Activation(), "cpu", "grouped"),
        (Activation(), "cuda", "kernel"),
        (Activation("gelu"), "cuda", PRODUCTS),
        (Activation("relu2", gated=False), "cuda", PRODUCTS),
        (Activation("relu", gated=False), "cuda", "kernel"),
        (Activation("gelu_tanh", gated=False), "cuda", PRODUCTS),
    ],
)
def test_the_form_and_its_reason(activation: Activation, provider: str, formulation: str) -> None:
    model, fact = lowered(moe_model(Experts(activation=activation), 2, Routing(2)), "latency", provider)
    assert fact["formulation"] == formulation and fact["node"] == "layer" and fact["op"] == "Moe" and fact["why"]
    assert ("MoE" in ops(model)) == (formulation == "kernel")
    assert "moec" not in model.opset_imports and not any(n.domain == "moec" for n in model.graph)


@pytest.mark.parametrize(("optimize_for", "said"), [("latency", "few tokens"), ("throughput", "many tokens")])
@pytest.mark.parametrize(("experts", "where"), [(6, "no branch"), (40, "branch")])
def test_the_arrangement_is_said(optimize_for: str, said: str, experts: int, where: str) -> None:
    _, fact = lowered(moe_model(Experts(experts=experts), 2, Routing(2)), optimize_for)
    assert fact["formulation"] == "grouped" and said in fact["why"] and where in fact["why"]


def test_odd_sizes_do_not_go_to_the_cuda_kernel() -> None:
    assert lowered(moe_model(Experts(inner=20), 2, Routing(2)), "latency", "cuda")[1]["formulation"] == PRODUCTS


def test_weights_of_unknown_sign_are_not_given_to_the_kernel() -> None:
    _, fact = lowered(experts_model(Experts(), 2, 2), "latency", "cuda")
    assert fact["formulation"] == PRODUCTS and "non-negative" in fact["why"]
    _, fact = lowered(experts_model(Experts(), 2, 2, weights_op="Tanh"), "latency", "cuda")
    assert fact["formulation"] == PRODUCTS


def test_ids_that_may_repeat_are_not_given_to_the_kernel() -> None:
    model = experts_model(Experts(), 2, 2, weights_op="Softmax")
    node, ids = next(n for n in model.graph if n.domain == "moec"), value("ids", torch.int64, ["d0", 2])
    model.graph.inputs.append(ids)
    node.replace_input_with(1, ids)
    _, fact = lowered(model, "latency", "cuda")
    assert fact["formulation"] == PRODUCTS and "distinct" in fact["why"]


def test_score_before_with_two_experts_a_token_is_not_the_kernels() -> None:
    assert lowered(experts_model(Experts(), 2, 2, True, "Softmax"), "latency", "cuda")[1]["formulation"] == PRODUCTS


@pytest.mark.parametrize(("optimize_for", "provider"), [("latency", "cpu"), ("throughput", "cpu"), ("latency", "cuda")])
def test_only_weights_that_are_read_stay_and_they_stay_lazy(optimize_for: str, provider: str) -> None:
    e = Experts(experts=20, biases=True)
    model, _ = lowered(moe_model(e, 2, Routing(2)), optimize_for, provider)
    assert all(v.uses() for v in model.graph.initializers.values())
    lazy = [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, WeightTensor)]
    assert sum(t.size for t in lazy) == sum(t.numel() for t in (*e.tensors, e.router) if t is not None)
    assert all(
        v.const_value in lazy or v.const_value.size < 100
        for v in model.graph.initializers.values()
        if v.const_value is not None
    )


def test_a_weight_with_another_reader_stays() -> None:
    model = moe_model(Experts(), 2, Routing(2))
    shape = ir.node("Shape", [model.graph.initializers["w_out"]])
    shape.outputs[0].type, shape.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([3])
    shape.outputs[0].name = "size"
    model.graph.insert_before(model.graph[0], shape)
    model.graph.outputs.append(shape.outputs[0])
    lower_experts(model, "throughput")
    assert "w_out" in model.graph.initializers and "w_in" not in model.graph.initializers


def test_two_layers_in_a_row_keep_their_names_apart() -> None:
    e, x = Experts(), tokens(5)
    model = moe_model(e, 2, Routing(2))
    first = model.graph[0]
    y, z = first.outputs[0], ir.Value(name="z", type=first.outputs[0].type, shape=first.outputs[0].shape)
    second = ir.node("Moe", [y, *first.inputs[1:]], dict(first.attributes), domain="moec", outputs=[z], name="layer2")
    model.graph.append(second)
    y.name, z.name = "middle", "y"
    model.graph.outputs[0] = z
    assert [f["node"] for f in lower_experts(model, "throughput")] == ["layer", "layer2"]
    op = lambda t: torch.ops.moec.moe(t, e.router, None, None, *e.tensors, top_k=2)  # noqa: E731
    assert error(run(model, x=x), op(op(x))) < 1e-5
    assert error(run(model, x=x), op(x)) > 0.1


def test_a_graph_without_blocks_is_left_alone() -> None:
    x = value("x", torch.float32, ["n"])
    node = ir.node("Relu", [x])
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}), ir_version=10)
    assert lower_experts(model) == [] and dict(model.opset_imports) == {"": 20}


def test_computed_weights_are_refused() -> None:
    model = moe_model(Experts(), 2, Routing(2))
    node, w = model.graph[0], model.graph.initializers["w_in"]
    computed = ir.node("Neg", [w])
    model.graph.insert_before(node, computed)
    node.replace_input_with(4, computed.outputs[0])
    with pytest.raises(MoecError) as caught:
        lower_experts(model)
    assert caught.value.code == "M208" and caught.value.where == "layer"
