"""Reshapes that can be spared: the same numbers with fewer nodes, and none where sizes are taken over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.wellformed import check_graph
from moec.backends.onnxruntime.optimization.reshapes import spare_reshapes
from tests.backends.onnxruntime.blocks import ops, run, value

X = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))


def constant(graph: ir.Graph, numbers: Sequence[int], name: str) -> ir.Value:
    initializer = ir.Value(name=name, const_value=ir.tensor(np.asarray(numbers, np.int64), name=name))
    graph.register_initializer(initializer)
    return initializer


def add(
    graph: ir.Graph, op: str, inputs: list[ir.Value], name: str, outputs: int = 1, **attributes: Any
) -> list[ir.Value]:
    node = ir.node(op, inputs, attributes, num_outputs=outputs, name=name)
    for n, out in enumerate(node.outputs):
        out.name = f"{name}.{n}"
    graph.append(node)
    return list(node.outputs)


def finished(graph: ir.Graph, result: ir.Value) -> ir.Model:
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None] * 4))
    graph.append(ir.node("Identity", [result], outputs=[y]))
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def chain(second: list[int], **attributes: int) -> ir.Model:
    graph = ir.Graph([value("x", torch.float32, ["b", "s", 24])], [], nodes=[], opset_imports={"": 20}, name="chain")
    flat = add(graph, "Reshape", [graph.inputs[0], constant(graph, [-1, 24], "a")], "flat")
    return finished(graph, add(graph, "Reshape", [flat[0], constant(graph, second, "b")], "again", **attributes)[0])


def heads(shape: list[int], counts: list[int], axis: int = -1) -> ir.Model:
    """A product's pieces, each cut into heads by one shape, and put together again."""
    graph = ir.Graph([value("x", torch.float32, ["b", "s", 24])], [], nodes=[], opset_imports={"": 20}, name="heads")
    pieces = add(graph, "Split", [graph.inputs[0], constant(graph, counts, "counts")], "split", len(counts), axis=axis)
    by = constant(graph, shape, "by")
    cut = [add(graph, "Reshape", [p, by], f"cut{n}")[0] for n, p in enumerate(pieces)]
    return finished(graph, add(graph, "Concat", cut[::-1], "joined", axis=2)[0])


@pytest.mark.parametrize("shape", [["b", "s", 24], [None, "s", 24], ["s", "b", 24]], ids=str)
def test_there_and_back_is_nothing(shape: list[Any]) -> None:
    model = chain([0, 5, -1])
    node = next(n for n in model.graph if n.name == "again")
    node.outputs[0].shape = ir.Shape(shape)
    same = shape == ["b", "s", 24]
    assert spare_reshapes(model) == (2 if same else 0) and ("Reshape" in ops(model)) is not same
    if same:
        assert torch.equal(run(model, x=X), X)


def test_two_in_a_row_are_one() -> None:
    model = chain([2, 5, 4, 6])
    assert spare_reshapes(model) == 1 and ops(model).count("Reshape") == 1
    assert torch.equal(run(model, x=X), X.reshape(2, 5, 4, 6))


def test_sizes_that_are_taken_over_keep_their_source() -> None:
    model = chain([0, 4, 6, 1])
    assert spare_reshapes(model) == 0
    assert run(model, x=X).shape == (10, 4, 6, 1), "the first size is that of the rows, not of the batch"


def test_heads_are_cut_once() -> None:
    model = heads([2, 5, -1, 4], [16, 4, 4])
    want = torch.cat([piece.reshape(2, 5, -1, 4) for piece in X.split([16, 4, 4], -1)[::-1]], 2)
    assert spare_reshapes(model) == 2 and ops(model).count("Reshape") == 1
    assert torch.equal(run(model, x=X), want)
    assert not torch.equal(run(model, x=X), want.flip(2)), "the order matters"


def test_a_shape_that_is_computed_after_the_split_is_still_read_after_it() -> None:
    model = heads([2, 5, -1, 4], [16, 4, 4])
    graph = model.graph
    sizes = [constant(graph, [n], f"size{n}") for n in (2, 5, -1, 4)]
    late = ir.node("Concat", sizes, {"axis": 0}, name="late")
    late.outputs[0].name = "late"
    graph.insert_after(graph[0], late)
    for node in graph:
        if node.op_type == "Reshape":
            node.replace_input_with(1, late.outputs[0])
    want = run(model, x=X)
    check_graph(model, "the test")
    assert spare_reshapes(model) == 2 and ops(model).count("Reshape") == 1
    check_graph(model, "spare-reshapes")
    assert torch.equal(run(model, x=X), want)


@pytest.mark.parametrize(
    ("shape", "counts"),
    [([2, 5, 2, 4], [8, 8, 8]), ([2, 5, -1, 4], [12, 6, 6])],
    ids=["heads are fixed", "a piece is no whole heads"],
)
def test_heads_that_the_shape_does_not_infer_stay(shape: list[int], counts: list[int]) -> None:
    assert spare_reshapes(heads(shape, counts)) == 0


def test_a_split_of_another_dimension_stays() -> None:
    assert spare_reshapes(heads([1, 5, -1, 4], [1, 1], axis=0)) == 0


def turned(axis: int = 2, perm: tuple[int, ...] = (0, 2, 1, 3), normed: bool = True) -> ir.Model:
    """Heads `[2, 5, 6, 4]` cut in 3, 2 and 1, the first after a norm of its rows, each transposed, and put together
    again."""
    graph = ir.Graph([value("x", torch.float32, ["b", "s", 6, 4])], [], nodes=[], opset_imports={"": 20}, name="turned")
    cut = add(graph, "Split", [graph.inputs[0], constant(graph, [3, 2, 1], "counts")], "split", 3, axis=axis)
    if normed:
        scale = ir.Value(name="scale", const_value=ir.tensor(np.linspace(0.5, 2, 4, dtype=np.float32), name="scale"))
        graph.register_initializer(scale)
        cut[0] = add(graph, "SimplifiedLayerNormalization", [cut[0], scale], "norm", axis=-1)[0]
    by_head = [add(graph, "Transpose", [p], f"turn{n}", perm=list(perm))[0] for n, p in enumerate(cut)]
    return finished(graph, add(graph, "Concat", by_head, "joined", axis=1)[0])


def test_heads_are_turned_once() -> None:
    model, heads = turned(), torch.randn(2, 5, 6, 4, generator=torch.Generator().manual_seed(1))
    before = run(model, x=heads)
    assert spare_reshapes(model) == 2 and ops(model).count("Transpose") == 1
    assert torch.equal(run(model, x=heads), before)
    want = heads.transpose(1, 2)
    assert torch.equal(before[:, 3:], want[:, 3:]) and not torch.allclose(before[:, :3], want[:, :3]), (
        "the first pieces were normed"
    )


@pytest.mark.parametrize(
    "rule", [{"axis": 1, "normed": False}, {"perm": (0, 1, 2, 3)}], ids=["tokens are cut", "nothing is turned"]
)
def test_pieces_that_are_not_all_turned_by_head_stay(rule: dict[str, Any]) -> None:
    assert spare_reshapes(turned(**rule)) == 0
