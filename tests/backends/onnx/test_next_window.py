"""The window that a convolution leaves for the next call: the operator's own, or what stands before a text's end."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.causal_conv import lower_causal_convs
from moec.backends.onnx.evaluation import GraphEngine
from moec.backends.onnx.wellformed import check_graph
from moec.program.signature import Input

C, K = 6, 4


def inputs(width: int) -> tuple[Input, ...]:
    return (
        Input("x", torch.float32, ("batch", C, "sequence")),
        Input("window", torch.float32, ("batch", C, width)),
        Input("ends", torch.int64, ("batch",)),
    )


def graph(width: int) -> ir.Model:
    """As the capture has it: both side by side, of which each text keeps the `width` columns before its end."""
    types = {torch.float32: ir.DataType.FLOAT, torch.int64: ir.DataType.INT64}
    x, window, ends = (
        ir.Value(name=i.name, type=ir.TensorType(types[i.dtype]), shape=ir.Shape(i.shape)) for i in inputs(width)
    )
    numbers = torch.linspace(-1, 1, C * K).reshape(C, K)
    constants = {
        "weight": ir.tensor(numbers.numpy()),
        "axes": ir.tensor([1, 2]),
        "places": ir.tensor([[list(range(width))]]),
        "shape": ir.tensor([1, C, 1]),
    }
    held = {
        n: ir.Value(name=n, type=ir.TensorType(t.dtype), shape=t.shape, const_value=t) for n, t in constants.items()
    }
    nodes = [
        ir.node("Concat", [window, x], {"axis": -1}),
        ir.node("Unsqueeze", [ends, held["axes"]]),
    ]
    nodes.append(ir.node("Add", [nodes[1].outputs[0], held["places"]]))
    columns = nodes[2].outputs[0]
    columns.shape, columns.type = ir.Shape(["batch", 1, width]), ends.type
    nodes.append(ir.node("Expand", [columns, held["shape"]]))
    nodes.append(ir.node("GatherElements", [nodes[0].outputs[0], nodes[3].outputs[0]], {"axis": 2}))
    nodes.append(ir.node("CausalConv", [x, window, held["weight"]], {"silu": 0}, domain="moec", name="conv"))
    outputs = [nodes[5].outputs[0], nodes[4].outputs[0]]
    for name, value in zip(("y", "next"), outputs, strict=True):
        value.name, value.type, value.shape = name, x.type, ir.Shape(["batch", C, None])
    made = ir.Graph(
        [x, window, ends], outputs, nodes=nodes, initializers=list(held.values()),
        opset_imports={"": 21, "moec": 1}, name="g",
    )  # fmt: skip
    return ir.Model(made, ir_version=10)


@pytest.mark.parametrize("width", [3, 4, 6])
def test_it_is_the_operators_where_no_text_ends_early(width: int) -> None:
    model = graph(width)
    lower_causal_convs(model, branches=True)
    assert [n.op_type for n in model.graph].count("If") == 1
    assert not {"GatherElements", "Slice"} & {n.op_type for n in model.graph}
    engine, generator = GraphEngine(model, inputs(width)), torch.Generator().manual_seed(0)
    weight = torch.linspace(-1, 1, C * K).reshape(C, K)
    for batch, length in ((1, 1), (3, 1), (2, 9)):
        x = torch.randn(batch, C, length, generator=generator)
        window = torch.randn(batch, C, width, generator=generator)
        for ends in (torch.full((batch,), length), torch.arange(batch) % (length + 1)):
            got = engine(x=x, window=window, ends=ends)
            whole = torch.cat([window, x], -1)
            want = torch.stack([row[:, end : end + width] for row, end in zip(whole, ends.tolist(), strict=True)])
            assert torch.equal(got["next"], want)
            assert torch.allclose(got["y"], torch.ops.moec.causal_conv(x, window, weight), atol=1e-5)


def test_a_window_that_something_else_reads_stays_as_it_is() -> None:
    model = graph(4)
    made = next(n for n in model.graph if n.op_type == "GatherElements").outputs[0]
    model.graph.append(ir.node("Neg", [made]))
    lower_causal_convs(model, branches=True)
    assert "GatherElements" in [n.op_type for n in model.graph]


def test_a_window_that_is_looked_up_after_the_convolution_stays_there() -> None:
    model = graph(4)
    first, conv = model.graph[0], next(n for n in model.graph if n.op_type == "CausalConv")
    model.graph.remove(conv)
    model.graph.insert_before(first, conv)
    lower_causal_convs(model, branches=True)
    assert "If" not in [n.op_type for n in model.graph]
    check_graph(model, "a test")


def test_without_branches_it_is_looked_up() -> None:
    model = graph(4)
    lower_causal_convs(model)
    assert "If" not in [n.op_type for n in model.graph]
