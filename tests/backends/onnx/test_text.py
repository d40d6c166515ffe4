"""A graph's text tells graphs apart, says the same of equal ones, and reads no weight."""

from __future__ import annotations

import onnx_ir as ir
import torch

from moec.backends.onnx.tensors import add_initializer
from moec.backends.onnx.text import text_of
from moec.weights.lazy import Weight
from tests.backends.onnx.graphs import add, branch, product


def test_one_line_a_value_and_a_node() -> None:
    assert text_of(product()).splitlines() == [
        "opset ai.onnx 20",
        "input x: FLOAT[rows, 6]",
        "output y: FLOAT[rows, 4]",
        "initializer w: FLOAT[6, 4]",
        "h = MatMul(x, w)",
        "y: FLOAT[rows, 4] = Relu(h)",
    ]


def test_equal_graphs_have_equal_texts_and_others_do_not() -> None:
    model, other = product(), product()
    assert text_of(model) == text_of(other)
    other.graph[0].attributes["alpha"] = ir.AttrFloat32("alpha", 2.0)
    assert text_of(model) != text_of(other) and "h = MatMul(x, w) {alpha=2.0}" in text_of(other)
    other = product()
    other.metadata_props["moec.shared_cache"] = "1"
    assert text_of(model) != text_of(other)


def test_constants_have_their_numbers_branches_and_functions_their_nodes() -> None:
    model = product()
    graph = model.graph
    two = ir.Value(name="two", const_value=ir.tensor([2, 3], name="two"), type=ir.TensorType(ir.DataType.INT64))
    graph.register_initializer(two)
    flag = add(graph, "IsInf", [graph.inputs[0]], "flag")
    add(graph, "If", [flag], "c", then_branch=branch(flag, "a"), else_branch=branch(graph.inputs[0], "b"))
    add(graph, "Constant", [], "k", value=ir.tensor([7]))
    inner = ir.Graph([ir.Value(name="p")], [], nodes=[], opset_imports={"": 20})
    inner.outputs.append(add(inner, "QuickGelu", [inner.inputs[0]], "q", domain="com.microsoft"))
    model.functions["moec", "F", ""] = ir.Function("moec", "F", graph=inner, attributes=())
    lines = text_of(model).splitlines()
    assert "initializer two: INT64 = [2, 3]" in lines and "k = Constant() {value=INT64[1] = [7]}" in lines
    at = lines.index("c = If(flag)")
    assert lines[at + 1 : at + 4] == ["  then_branch:", "    a = Identity(flag)", "    return a"]
    assert lines[-3:] == ["function moec::F(p)", "  q = com.microsoft::QuickGelu(p)", "  return q"]


def test_no_weight_is_read() -> None:
    def refuse(start: int, stop: int) -> torch.Tensor:
        raise AssertionError("a weight was read")

    model = product()
    add_initializer(model.graph, Weight((2,), torch.float32, "w", refuse), "small")
    assert "initializer small: FLOAT[2]" in text_of(model).splitlines()
