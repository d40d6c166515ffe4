"""Opaque ONNX nodes take what the dialect's operators take, in the same order: the schema of torch says it for both."""

from __future__ import annotations

import inspect
from typing import Any

import onnx.defs
import pytest
import torch

from moec.backends.onnx.emit import DOMAIN
from moec.backends.onnx.moe_node import INPUTS
from moec.backends.onnx.opaque_nodes import translations
from moec.program.dialect_call import positional_names

OPERATORS = {
    "Experts": (torch.ops.moec.experts.default, 5),
    "Moe": (torch.ops.moec.moe.default, 2),
    "Attention": (torch.ops.moec.attention.default, 3),
    "LinearAttention": (torch.ops.moec.linear_attention.default, 4),
    "SelectiveScan": (torch.ops.moec.selective_scan.default, 6),
    "CausalConv": (torch.ops.moec.causal_conv.default, 3),
    "Dequantize": (torch.ops.moec.dequantize.default, 2),
    "DequantizeFloat": (torch.ops.moec.dequantize_float.default, 2),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_inputs_and_attributes_are_those_of_the_operator(name: str) -> None:
    operator, required = OPERATORS[name]
    translations()
    schema = onnx.defs.get_schema(name, 1, DOMAIN)
    assert tuple(i.name for i in schema.inputs) == positional_names(operator)
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    assert [i.option == optional for i in schema.inputs] == [at >= required for at in range(len(schema.inputs))]
    assert set(schema.attributes) == {a.name for a in operator._schema.arguments if a.kwarg_only}


@pytest.mark.parametrize("name", OPERATORS)
def test_what_emits_a_node_takes_the_operators_tensors_in_order(name: str) -> None:
    operator, _ = OPERATORS[name]
    emit: Any = translations()[operator]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    taken = tuple(p.name for p in inspect.signature(emit).parameters.values() if p.kind in kinds)
    assert taken == positional_names(operator)


def test_nodes_are_read_in_the_order_in_which_they_are_written() -> None:
    translations()
    for name, inputs in INPUTS.items():
        assert tuple(i.name for i in onnx.defs.get_schema(name, 1, DOMAIN).inputs) == inputs
