"""Reading an opaque node back into rules and lazy weights."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.moe_node import read
from moec.dialect import Activation, Routing
from moec.errors import MoecError
from tests.backends.onnxruntime.blocks import Experts, experts_model, moe_model


def block_node(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph if n.domain == "moec")


def test_a_moe_node_says_its_rules() -> None:
    rule, act = Routing(3, combine="scores", scale=2.5), Activation("silu", alpha=1.5, beta=1.0, limit=7.0)
    e = Experts(activation=act, biases=True)
    block = read(block_node(moe_model(e, 2, rule)))
    assert (block.routing, block.activation, block.score_before, block.top_k) == (rule, act, False, 3)
    assert (block.experts, block.hidden, block.dtype, block.wide) == (6, 32, ir.DataType.FLOAT, ir.DataType.FLOAT)
    assert block.b_in is not None and e.b_in is not None and torch.equal(block.b_in.load(), e.b_in)
    assert torch.equal(block.w_in.load(), e.w_in) and torch.equal(block.w_out.load(), e.w_out)


def test_an_experts_node_says_its_rules() -> None:
    block = read(
        block_node(experts_model(Experts(activation=Activation("relu", gated=False)), 3, 2, score_before=True))
    )
    assert (block.routing, block.activation.name, block.activation.gated, block.score_before, block.top_k) == (
        None,
        "relu",
        False,
        True,
        2,
    )
    assert block.b_in is None and block.b_out is None


def test_a_weight_that_is_in_memory_is_read_too() -> None:
    e = Experts()
    model = moe_model(e, 2, Routing(2))
    model.graph.initializers["w_in"].const_value = ir.tensor(e.w_in.numpy())
    assert torch.equal(read(block_node(model)).w_in.load(), e.w_in)


def test_k_must_be_static() -> None:
    model = experts_model(Experts(), 2, 2)
    for value in model.graph.inputs[1:]:
        value.shape = ir.Shape(["t", "k"])
    with pytest.raises(MoecError) as caught:
        read(block_node(model))
    assert caught.value.code == "M208"
