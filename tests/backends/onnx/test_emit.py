"""Emitting nodes in the place of one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from moec.backends.onnx.emit import Emitter
from moec.dialect import Routing
from tests.backends.onnxruntime.blocks import Experts, moe_model


def emitter() -> tuple[ir.Model, Emitter]:
    model = moe_model(Experts(), 2, Routing(2))
    return model, Emitter(model.graph, model.graph[0])


def test_nodes_stand_before_the_replaced_one_and_are_named_after_it() -> None:
    model, emit = emitter()
    a = emit("Relu", model.graph.inputs[0])
    b, c = emit.several(2, "Split", a, axis=-1)
    assert [n.op_type for n in model.graph] == ["Relu", "Split", "Moe"]
    assert [a.name, b.name, c.name] == ["layer/Relu_0", "layer/Split_1.0", "layer/Split_1.1"]


def test_equal_constants_are_one_and_others_are_not() -> None:
    _, emit = emitter()
    assert emit.constant([1, 2]) is emit.constant(np.array([1, 2]))
    assert emit.constant(1) is not emit.constant([1])
    assert emit.number(0.5, ir.DataType.FLOAT) is not emit.number(0.5, ir.DataType.FLOAT16)
    constant = emit.number(-7.25, ir.DataType.BFLOAT16).const_value
    assert constant is not None and float(constant.numpy()) == -7.25 and constant.dtype == ir.DataType.BFLOAT16


def test_a_cast_to_the_same_dtype_is_nothing() -> None:
    model, emit = emitter()
    x = model.graph.inputs[0]
    assert emit.cast(x, ir.DataType.FLOAT, ir.DataType.FLOAT) is x
    assert emit.cast(x, ir.DataType.FLOAT, ir.DataType.FLOAT16).producer() is not None


def test_the_result_takes_name_type_and_place() -> None:
    model, emit = emitter()
    emit.replace(emit("Relu", model.graph.inputs[0]))
    y = model.graph.outputs[0]
    assert y.name == "y" and y.dtype == ir.DataType.FLOAT and y.producer() is model.graph[0]
    assert [n.op_type for n in model.graph] == ["Relu"] and not model.graph.initializers


def test_a_weight_is_named_after_its_role() -> None:
    model, emit = emitter()
    from moec.weights.lazy import from_tensor

    assert emit.weight(from_tensor(torch.ones(2, 3), "w"), "w_in").name == "layer.w_in"
    assert emit.weight(from_tensor(torch.ones(2, 3), "w"), "w_in").name == "layer.w_in_1"
    assert "layer.w_in" in model.graph.initializers
