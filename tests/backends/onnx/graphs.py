"""Small ONNX graphs for tests of what is done to graphs."""

from __future__ import annotations

import onnx_ir as ir
import torch

from moec.backends.onnx.tensors import add_initializer
from moec.weights.lazy import from_tensor

W = torch.arange(24.0).reshape(6, 4)


def product() -> ir.Model:
    """`y = relu(x @ w)` for x `[rows, 6]`, float32."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", 6]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="product")
    w = add_initializer(graph, from_tensor(W, "w"), "w")
    h = add(graph, "MatMul", [x, w], "h")
    y = add(graph, "Relu", [h], "y")
    y.type, y.shape = x.type, ir.Shape(["rows", 4])
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def add(
    graph: ir.Graph, op: str, inputs: list[ir.Value], name: str, domain: str = "", **attributes: object
) -> ir.Value:
    """Append a node of one output, which gets its name."""
    node = ir.node(op, inputs, attributes, domain=domain, name=f"node_{name}")  # type: ignore[arg-type]
    node.outputs[0].name = name
    graph.append(node)
    return node.outputs[0]


def branch(read: ir.Value, name: str) -> ir.Graph:
    """A branch that reads a value of the graph around it."""
    inner = ir.Graph([], [], nodes=[], name=name)
    inner.outputs.append(add(inner, "Identity", [read], name))
    return inner
