"""What a graph proves about signs and distinctness, and what it does not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.routing_proofs import distinct, masked, nonnegative
from tests.backends.onnxruntime.blocks import value


def const(*numbers: float) -> ir.Value:
    tensor = ir.tensor(np.asarray(numbers, np.float32))
    return ir.Value(name="c", type=ir.TensorType(ir.DataType.FLOAT), shape=tensor.shape, const_value=tensor)


def op(name: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
    return ir.node(name, inputs, attributes).outputs[0]


X = value("x", torch.float32, ["t", 6])


@pytest.mark.parametrize(
    "proven",
    [
        lambda: op("Softmax", X),
        lambda: op("Mul", op("Reshape", op("Sigmoid", X), const(1.0)), const(2.5)),
        lambda: op("Reciprocal", op("Add", const(1.0), op("Exp", op("Neg", X)))),
        lambda: op("Div", op("Softmax", X), op("Add", op("ReduceSum", op("Softmax", X)), const(1e-20))),
        lambda: ir.node("TopK", [op("Softmax", X), const(2.0)], num_outputs=2).outputs[0],
        lambda: op("Where", X, op("Sigmoid", X), const(0.0)),
        lambda: op("Clip", op("Sigmoid", X)),
        lambda: op("Clip", X, const(0.5), const(2.0)),
        lambda: const(0.0, 3.0),
    ],
)
def test_never_negative(proven) -> None:  # type: ignore[no-untyped-def]
    assert nonnegative(proven())


@pytest.mark.parametrize(
    "unknown",
    [
        lambda: X,
        lambda: op("Tanh", X),
        lambda: op("Mul", op("Sigmoid", X), const(-1.0)),
        lambda: op("Add", op("Softmax", X), X),
        lambda: op("Sub", op("Softmax", X), const(0.5)),
        lambda: op("Where", X, op("Sigmoid", X), const(float("-inf"))),
        lambda: op("Log", op("Softmax", X)),
        lambda: op("Clip", X, const(-0.5)),
        lambda: op("Clip", op("Sigmoid", X), const(-2.0), const(-1.0)),
        lambda: const(0.0, -1.0),
    ],
)
def test_not_proven(unknown) -> None:  # type: ignore[no-untyped-def]
    assert not nonnegative(unknown())


def test_weights_that_are_set_to_zero_are_seen() -> None:
    kept = op("Where", X, op("CastLike", const(0.0), X), op("Softmax", X))
    assert masked(kept) and masked(op("Mul", op("Reshape", kept, const(1.0)), X))
    assert not any(
        masked(v) for v in (X, op("Softmax", X), op("Where", X, const(1.0), op("Softmax", X)), op("ReduceSum", kept))
    )


def test_ids_of_one_top_k_are_distinct() -> None:
    top = ir.node("TopK", [X, const(2.0)], {"axis": -1}, num_outputs=2)
    assert distinct(top.outputs[1], 2)
    assert distinct(op("Cast", top.outputs[1]), 2)
    assert not distinct(top.outputs[0], 2)
    assert not distinct(op("Concat", top.outputs[1], top.outputs[1]), 4)
    assert not distinct(value("ids", torch.int64, ["t", 2]), 2)


def test_a_reshape_keeps_ids_distinct_only_if_it_keeps_the_rows() -> None:
    top = ir.node("TopK", [X, const(2.0)], num_outputs=2)
    flat = op("Reshape", top.outputs[1], const(-1.0))
    flat.shape = ir.Shape(["n", 2])
    assert not distinct(flat, 2)  # the width before is not known
    top.outputs[1].shape = ir.Shape(["t", 2])
    assert distinct(flat, 2)
    flat.shape = ir.Shape(["n", 4])
    assert not distinct(flat, 4)


def test_the_first_axis_is_not_a_row() -> None:
    assert not distinct(ir.node("TopK", [X, const(2.0)], {"axis": 0}, num_outputs=2).outputs[1], 2)
