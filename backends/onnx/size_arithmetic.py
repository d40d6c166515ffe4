"""Sizes that a model computes with fractions (`int(1.05 * tokens / 3)`) as Python computes them, in float64.

torch.onnx has float32 for them, in which 1.05 * 60 / 3 is less than 21.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import onnx_ir as ir
import torch

_DOUBLE, _INT64 = ir.DataType.DOUBLE, ir.DataType.INT64
_FLOATS = (ir.DataType.FLOAT, _DOUBLE)
_JOINED = {operator.mul: "Mul", operator.add: "Add", operator.sub: "Sub", torch.sym_max: "Max", torch.sym_min: "Min"}
_ROUNDED = {math.trunc: "", math.ceil: "Ceil", math.floor: "Floor"}
_PASS_ON = {"Div", *_JOINED.values(), *_ROUNDED.values()}


def size_translations() -> dict[Any, Callable[..., Any]]:
    """Operators on sizes -> functions that emit them, for torch.onnx's `custom_translation_table`."""
    from onnxscript import opset18

    def joined(kind: str, a: Any, b: Any) -> Any:
        emit = getattr(opset18, kind)
        return emit(wide(a), wide(b)) if is_fraction(a) or is_fraction(b) else emit(whole(a), whole(b))

    def rounded(kind: str, x: Any) -> Any:
        return opset18.Cast(getattr(opset18, kind)(wide(x)) if kind else wide(x), to=_INT64.value)

    def wide(x: Any) -> Any:
        return _constant(opset18, x, _DOUBLE) if isinstance(x, int | float) else opset18.Cast(x, to=_DOUBLE.value)

    def whole(x: Any) -> Any:
        return _constant(opset18, x, _INT64) if isinstance(x, int) else x

    return {
        torch.sym_float: wide,
        operator.truediv: lambda a, b: opset18.Div(wide(a), wide(b)),
        **{function: partial(joined, kind) for function, kind in _JOINED.items()},
        **{function: partial(rounded, kind) for function, kind in _ROUNDED.items()},
    }


def is_fraction(x: Any) -> bool:
    """Whether a number, or the value of a graph, is no whole number by its type."""
    return isinstance(x, float) or getattr(x, "dtype", None) in _FLOATS


def _constant(opset: Any, value: float, dtype: ir.DataType) -> Any:
    import onnx.helper

    return opset.Constant(value=onnx.helper.make_tensor("", dtype.value, [], [value]))


def name_fractions(graph: ir.Graph) -> None:
    """Give the fractions of a graph the type that they have: torch.onnx takes each for float32, in place."""
    found: set[ir.Value] = set()
    for node in graph:
        to = node.attributes.get("to")
        if node.op_type == "Constant":
            value = node.attributes.get("value")
            double = value is not None and value.as_tensor().dtype == _DOUBLE and not value.as_tensor().shape.dims
        elif node.op_type == "Cast":
            double = to is not None and to.as_int() == _DOUBLE.value and not (node.outputs[0].shape or ())
        else:
            double = node.op_type in _PASS_ON and any(value in found for value in node.inputs)
        if double:
            found.add(node.outputs[0])
            node.outputs[0].dtype = _DOUBLE
