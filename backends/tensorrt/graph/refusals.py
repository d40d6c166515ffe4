"""What of a program TensorRT cannot take, known from shapes alone, before anything is exported or built."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from moec.backends.tensorrt.graph.quantized import unreadable
from moec.backends.tensorrt.policy import Plan, Shape, choose
from moec.dialect import Activation
from moec.program.program import Program
from moec.quantization.small_floats import bits_of
from moec.targets.backend import Refusal

ops = torch.ops.moec
FIRST = {ops.experts.default: 3, ops.moe.default: 4}  # where w_in stands; w_out, b_in and b_out follow


def refusals(program: Program, plan: Plan) -> list[Refusal]:
    """Weights on grids that TensorRT does not read, and MoE blocks for which there is no lowering, see
    `policy.choose`."""
    blocks = [(str(node.name), _shape(program, node)) for node in program.nodes(*FIRST)]
    choices = [choose(shape, plan, name) for name, shape in blocks]
    return [*unreadable(program, plan), *(choice for choice in choices if isinstance(choice, Refusal))]


def _shape(program: Program, node: fx.Node) -> Shape:
    first = FIRST[node.target]  # type: ignore[index]  # the nodes are those of its keys
    w_in, w_out, b_in, b_out = (*node.args[first:], None, None)[:4]
    (experts, _, hidden), inner = _value(w_in).shape, _value(w_out).shape[2]
    bits = [width for w in (w_in, w_out) if (width := _bits(w))]
    top_k = node.kwargs["top_k"] if "top_k" in node.kwargs else _value(node.args[1]).shape[-1]
    biases = {(False, False): "", (True, True): "all"}.get((b_in is not None, b_out is not None), "some")
    before = bool(node.kwargs.get("score_before", False))
    floats = any(isinstance(w, fx.Node) and w.target is ops.dequantize_float.default for w in (w_in, w_out))
    item_bytes, width = _value(w_in).dtype.itemsize, min(bits, default=0)
    return Shape(
        experts,
        int(top_k),  # type: ignore[arg-type]
        hidden,
        inner,
        Activation.of(node.kwargs),
        before,
        item_bytes,
        width,
        biases,
        floats,
    )


def _bits(weight: Any) -> int:
    """The width of a packed weight's codes; 0 for any other."""
    if not isinstance(weight, fx.Node):
        return 0
    if weight.target is ops.dequantize_float.default:
        return bits_of(str(weight.kwargs["format"]))
    return int(weight.kwargs["bits"]) if weight.target is ops.dequantize.default else 0  # type: ignore[arg-type]


def _value(node: Any) -> torch.Tensor:
    return node.meta["val"]  # type: ignore[no-any-return]
