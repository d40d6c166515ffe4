"""Places that start at a length, and are the same numbers; a row that is moved by data is left alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from moec.backends.onnxruntime.optimization.ranges import start_ranges
from tests.backends.onnxruntime.blocks import ops, run, value

NEW, PAST = 3, 5


def model_of(by_data: bool = False, first: int = 0, turned: bool = False) -> ir.Model:
    """`arange(new) + past`, as masks have it; `by_data`: moved by a number that is not a size."""
    new, past, number = value("new", torch.int64, ["s"]), value("past", torch.int64, ["p"]), value(
        "number", torch.int64, [])  # fmt: skip
    graph = ir.Graph([new, past, number], [], nodes=[], opset_imports={"": 20}, name="ranges")
    for name, n in (("first", first), ("one", 1)):
        tensor = ir.tensor(np.array(n, np.int64), name=name)
        graph.register_initializer(ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(()),
                                            const_value=tensor))  # fmt: skip

    def add(op: str, *inputs: ir.Value) -> ir.Value:
        node = ir.node(op, inputs, name=f"{op}{len(graph)}")
        node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(ir.DataType.INT64)
        graph.append(node)
        return node.outputs[0]

    sizes = [add("Squeeze", add("Shape", v)) for v in (new, past)]
    row = add("Range", graph.initializers["first"], sizes[0], graph.initializers["one"])
    terms = [row, number if by_data else sizes[1]]
    y = add("Add", *(terms[::-1] if turned else terms))
    y.name, y.shape = "y", ir.Shape(["s"])
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("turned", [False, True])
def test_a_row_starts_at_a_length(turned: bool) -> None:
    given = {n: torch.zeros(size, dtype=torch.int64) for n, size in (("new", NEW), ("past", PAST), ("number", ()))}
    model = model_of(turned=turned)
    assert start_ranges(model) == 1 and ops(model).count("Range") == 1
    assert run(model, **given).tolist() == [5, 6, 7] == run(model_of(), **given).tolist()
    assert start_ranges(model) == 0


@pytest.mark.parametrize("model", [model_of(by_data=True), model_of(first=1)], ids=["data", "another start"])
def test_others_are_left_alone(model: ir.Model) -> None:
    assert start_ranges(model) == 0
