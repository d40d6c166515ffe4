"""What of a program TensorRT cannot take, known from shapes alone, before anything is exported or built."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from moec.backends.tensorrt.graph.quantized import unreadable
from moec.backends.tensorrt.policy import BuildPlan, Shape, choose
from moec.program.dialect_call import DEQUANTIZE, DEQUANTIZE_FLOAT, DequantizeCall, DequantizeFloatCall
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from moec.quantization.small_floats import bits_of
from moec.targets.backend import Refusal


def refusals(program: Program, plan: BuildPlan) -> list[Refusal]:
    """Weights on grids that TensorRT does not read, and MoE blocks for which there is no lowering, see
    `policy.choose`."""
    blocks = [(str(node.name), _shape(node)) for node in moe_nodes(program)]
    choices = [choose(shape, plan, name) for name, shape in blocks]
    return [*unreadable(program, plan), *(choice for choice in choices if isinstance(choice, Refusal))]


def _shape(node: fx.Node) -> Shape:
    call = MoeCall(node)
    first, second, matrices = _value(call.w_in), _value(call.w_out), (call.w_in, call.w_out)
    bits = [width for w in matrices if (width := _bits(w))]
    biases = {(False, False): "", (True, True): "all"}.get((call.b_in is not None, call.b_out is not None), "some")
    floats = any(isinstance(w, fx.Node) and w.target is DEQUANTIZE_FLOAT for w in matrices)
    return Shape(
        call.experts,
        call.top_k,
        first.shape[2],
        second.shape[2],
        call.activation,
        call.score_before,
        first.dtype.itemsize,
        min(bits, default=0),
        biases,
        floats,
    )


def _bits(weight: Any) -> int:
    """The width of a packed weight's codes; 0 for any other."""
    if not isinstance(weight, fx.Node):
        return 0
    if weight.target is DEQUANTIZE_FLOAT:
        return bits_of(DequantizeFloatCall(weight).format)
    return DequantizeCall(weight).bits if weight.target is DEQUANTIZE else 0


def _value(node: Any) -> torch.Tensor:
    return node.meta["val"]  # type: ignore[no-any-return]
