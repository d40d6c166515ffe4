"""Products that are cut head by head are cut once: the same numbers, fewer nodes, weights still lazy."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.tensors import WeightTensor, add_initializer
from moec.backends.onnx.wellformed import check_graph
from moec.backends.onnxruntime.optimization.cuts import cut_by_kind, join_cuts
from moec.backends.onnxruntime.optimization.packing import pack_products
from moec.weights.lazy import from_tensor
from tests.backends.onnxruntime.blocks import error, ops, run, session, value
from tests.backends.onnxruntime.optimization.test_reshapes import add, constant

HEADS, SIZES, DEPTH = 3, (2, 2, 4), 8
WIDTH, WEIGHT = sum(SIZES), torch.randn(DEPTH, HEADS * sum(SIZES), generator=torch.Generator().manual_seed(1))
X = torch.randn(2, 5, DEPTH, generator=torch.Generator().manual_seed(0))


def by_head(order: Sequence[int] = (0, 1), flat: Sequence[int] = (0, 0, -1)) -> ir.Model:
    """A product cut head by head; pieces 0 and 1 are put together in some order, and stand beside piece 2."""
    graph = ir.Graph([value("x", torch.float32, ["b", "s", DEPTH])], [], nodes=[], opset_imports={"": 20}, name="cuts")
    weight = add_initializer(graph, from_tensor(WEIGHT, "w"), "w")
    (product,) = add(graph, "MatMul", [graph.inputs[0], weight], "product")
    product.shape, product.type = ir.Shape(["b", "s", HEADS * WIDTH]), graph.inputs[0].type
    (cut,) = add(graph, "Reshape", [product, constant(graph, [2, 5, HEADS, WIDTH], "by")], "heads")
    cut.shape, cut.type = ir.Shape(["b", "s", HEADS, WIDTH]), product.type
    pieces = add(graph, "Split", [cut, constant(graph, SIZES, "sizes")], "split", len(SIZES), axis=-1)
    shapes = [[*flat[:-1], HEADS * size] if flat[-1] == -1 else list(flat) for size in SIZES]
    rows = [
        add(graph, "Reshape", [p, constant(graph, shape, f"shape{n}")], f"flat{n}")[0]
        for n, (p, shape) in enumerate(zip(pieces, shapes, strict=True))
    ]
    for row, size in zip(rows, SIZES, strict=True):
        row.shape, row.type = ir.Shape(["b", "s", HEADS * size]), product.type
    (joined,) = add(graph, "Concat", [rows[n] for n in order], "joined", axis=-1)
    (negative,) = add(graph, "Neg", [rows[2]], "negative")
    y = value("y", torch.float32, ["b", "s", HEADS * WIDTH])
    graph.append(ir.node("Concat", [joined, negative], {"axis": -1}, outputs=[y]))
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def wanted(order: Sequence[int] = (0, 1)) -> torch.Tensor:
    kinds = [part.flatten(2) for part in (X @ WEIGHT).unflatten(2, (HEADS, WIDTH)).split(SIZES, 3)]
    return torch.cat([*(kinds[n] for n in order), -kinds[2]], 2)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_product_is_cut_once(order: tuple[int, int]) -> None:
    model = by_head(order, (2, 5, -1))
    assert error(run(model, x=X), wanted(order)) < 1e-6, "the model is what it should be"
    assert cut_by_kind(model) == 1 and cut_by_kind(model) == 0
    check_graph(model, "cut-by-kind")
    left = ["MatMul", "Split", "Neg", "Concat"] if order == (0, 1) else ["MatMul", "Split", "Concat", "Neg", "Concat"]
    assert sorted(ops(model)) == sorted(left), "pieces that are put together in their order are one"
    assert error(run(model, x=X), wanted(order)) < 1e-6
    assert error(run(model, x=X), wanted(order[::-1])) > 0.1, "the order matters"
    tensors = [v.const_value for v in model.graph.initializers.values() if v.name != "sizes"]
    assert any(isinstance(t, WeightTensor) and list(t.shape.numpy()) == [DEPTH, HEADS * WIDTH] for t in tensors)


def test_sizes_that_are_taken_over_from_a_piece_keep_it() -> None:
    model = by_head(flat=(0, 0, -1))
    assert cut_by_kind(model) == 0, "0 copies a size of what is reshaped"


def test_a_piece_that_is_read_by_head_keeps_the_heads() -> None:
    model = by_head(flat=(2, 5, -1))
    split = next(n for n in model.graph if n.op_type == "Split")
    other = ir.node("Neg", [split.outputs[0]], name="other")
    model.graph.insert_after(split, other)
    assert cut_by_kind(model) == 0


def test_a_weight_that_others_read_stays() -> None:
    model = by_head(flat=(2, 5, -1))
    other = ir.node("Neg", [model.graph.initializers["w"]], name="other")
    model.graph.insert_before(model.graph.node("product"), other)
    assert cut_by_kind(model) == 0


def test_cuts_of_a_packed_product_are_one_cut() -> None:
    model = by_head(flat=(2, 5, -1))
    graph = model.graph
    second = torch.randn(DEPTH, 6, generator=torch.Generator().manual_seed(2))
    (more,) = add(graph, "MatMul", [graph.inputs[0], add_initializer(graph, from_tensor(second, "v"), "v")], "more")
    more.type = graph.inputs[0].type
    z = value("z", torch.float32, ["b", "s", 6])
    graph.append(ir.node("Neg", [more], outputs=[z]))
    graph.outputs.append(z)
    assert cut_by_kind(model) == 1 and pack_products(model) == 1
    assert ops(model).count("Split") == 2 and join_cuts(model) == 1 and ops(model).count("Split") == 1
    check_graph(model, "join-cuts")
    assert error(run(model, x=X), wanted()) < 1e-6
    assert error(torch.from_numpy(session(model).run(["z"], {"x": X.numpy()})[0]), -(X @ second)) < 1e-6


def test_sizes_that_nobody_knows_are_not_compared() -> None:
    model = by_head(flat=(2, 5, -1))
    model.graph.node("product").outputs[0].shape = ir.Shape([None, None, HEADS * WIDTH])
    model.graph.node("heads").outputs[0].shape = ir.Shape([None, None, HEADS, WIDTH])
    assert cut_by_kind(model) == 0
