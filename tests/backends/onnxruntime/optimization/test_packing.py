"""Products of one value with several weights: the same numbers, fewer kernels, weights still lazy."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.tensors import WeightTensor, add_initializer
from moec.backends.onnxruntime.optimization.packing import pack_products
from moec.weights.lazy import from_tensor
from tests.backends.onnxruntime.blocks import error, ops, run, value

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def model_of(
    widths: list[int], dtypes: list[torch.dtype] | None = None, depth: int = 8
) -> tuple[ir.Model, list[torch.Tensor]]:
    """`y` is the concatenation of x's products with a weight of each width."""
    x = value("x", torch.float32, ["b", "s", depth])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="products")
    weights = [torch.randn(depth, n, generator=torch.Generator().manual_seed(k)) for k, n in enumerate(widths)]
    outputs = []
    for n, weight in enumerate(weights):
        initializer = add_initializer(graph, from_tensor(weight, f"w{n}"), f"w{n}")
        out = ir.Value(name=f"out{n}", type=x.type, shape=ir.Shape(["b", "s", widths[n]]))
        graph.append(ir.node("MatMul", [x, initializer], outputs=[out], name=f"product{n}"))
        outputs.append(out)
    y = value("y", torch.float32, ["b", "s", sum(widths)])
    graph.append(ir.node("Concat", outputs[::-1], {"axis": -1}, outputs=[y]))
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10), weights


@pytest.mark.parametrize("widths", [[8, 4, 4], [6, 6]], ids=str)
def test_one_product_with_the_same_result(widths: list[int]) -> None:
    model, weights = model_of(widths)
    want = torch.cat([X @ w for w in weights[::-1]], -1)
    assert pack_products(model) == 1 and ops(model).count("MatMul") == 1 and ops(model).count("Split") == 1
    assert error(run(model, x=X), want) < 1e-6
    assert error(run(model, x=X), torch.cat([X @ w for w in weights], -1)) > 0.1, "the order matters"
    packed = [
        v.const_value
        for v in model.graph.initializers.values()
        if isinstance(v.const_value, WeightTensor) and len(v.const_value.shape) == 2
    ]
    assert any(list(t.shape.numpy()) == [8, sum(widths)] for t in packed), "still lazy"
    assert pack_products(model) == 0, "nothing is left to pack"


def test_a_single_product_is_left_alone() -> None:
    model, _ = model_of([8])
    assert pack_products(model) == 0


def test_products_of_two_values_are_left_alone() -> None:
    model, _ = model_of([8, 8])
    second = next(n for n in model.graph if n.name == "product1")
    other = ir.node("Neg", [model.graph.inputs[0]], name="other")
    other.outputs[0].name = "other"
    model.graph.insert_before(second, other)
    second.replace_input_with(0, other.outputs[0])
    assert pack_products(model) == 0


@pytest.mark.parametrize("biased", [(0, 1, 2), (0, 2)], ids=["all", "some"])
def test_biases_are_added_at_once_where_all_products_have_one(biased: tuple[int, ...]) -> None:
    model, weights = model_of([8, 4, 4])
    biases = [torch.randn(len(w.T), generator=torch.Generator().manual_seed(9 + n)) for n, w in enumerate(weights)]
    for n in biased:
        product = next(node for node in model.graph if node.name == f"product{n}")
        bias = add_initializer(model.graph, from_tensor(biases[n], f"b{n}"), f"b{n}")
        add = ir.node("Add", [product.outputs[0], bias], name=f"add{n}")
        add.outputs[0].name = f"biased{n}"
        ir.convenience.replace_all_uses_with(product.outputs[0], add.outputs[0])
        add.replace_input_with(0, product.outputs[0])
        model.graph.insert_after(product, add)
    parts = [X @ w + (b if n in biased else 0) for n, (w, b) in enumerate(zip(weights, biases, strict=True))]
    assert pack_products(model) == 1 and ops(model).count("Add") == (1 if len(biased) == 3 else 2)
    got = run(model, x=X)
    assert error(got, torch.cat(parts[::-1], -1)) < 1e-6
    assert error(got, torch.cat([X @ w for w in weights[::-1]], -1)) > 0.1
    assert all(v.uses() for v in model.graph.initializers.values())
