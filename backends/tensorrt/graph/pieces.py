"""A block's tokens in pieces, one after the other: the form that suits few tokens and the one that suits many in one
graph, and wide products of no more tokens than memory has room for.

How many tokens a piece has is arithmetic on shapes, which TensorRT does on the host before anything is launched: a
piece without tokens is an empty tensor, and costs no branch. So a step can be part of a CUDA graph. Each size is a
`Min` with a constant, from which a builder can tell how much memory a piece takes at most.

All pieces read the same constants. Gate and up are one matrix here: of two the builder would make one by itself, a copy
(measured with TensorRT-RTX 1.7.1 by the size of the plan).
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from moec.backends.onnx.emit import Emitter
from moec.backends.tensorrt.graph.expert_layer import ExpertLayer, dense, gathered
from moec.backends.tensorrt.policy import FormChoice

_END = 2**31 - 1  # of a slice that takes the rest


def mixed(layer: ExpertLayer, choice: FormChoice, tokens: int) -> ir.Value:
    """The experts' mixed outputs `[T, H]` in float32, in the form that was chosen.

    Args:
        layer: the block.
        choice: its `form`, `few` and `piece`.
        tokens: the most of a call.
    """
    if choice.form == "gathered":
        return gathered(layer)
    if choice.form == "dense":
        return _wide(replace(layer, whole=True) if choice.piece else layer, choice.piece, tokens)
    emit, layer = layer.emit, replace(layer, both=True, whole=True)
    split = _few(emit, layer.x, choice.few)
    some = gathered(_rows(layer, emit.constant([0]), split))
    return emit("Concat", some, _wide(_rows(layer, split, emit.constant([_END])), choice.piece, tokens), axis=0)


def _wide(layer: ExpertLayer, piece: int, tokens: int) -> ir.Value:
    """All tokens' wide products, at most `piece` tokens at once."""
    if not piece:
        return dense(layer)
    emit = layer.emit
    count = emit("Shape", layer.x, start=0, end=1)
    ends = [emit("Min", count, emit.constant([n])) for n in range(piece, tokens + piece, piece)]
    starts = [emit.constant([0]), *ends[:-1]]
    return emit("Concat", *(dense(_rows(layer, *both)) for both in zip(starts, ends, strict=True)), axis=0)


def _few(emit: Emitter, x: ir.Value, few: int) -> ir.Value:
    """The number of tokens of `x` where there are at most `few`, else 0: `T * clip(few + 1 - T, 0, 1)`."""
    count = emit("Shape", x, start=0, end=1)
    left = emit("Max", emit("Sub", emit.constant([few + 1]), count), emit.constant([0]))
    return emit("Min", emit("Mul", count, emit("Min", left, emit.constant([1]))), emit.constant([few]))


def _rows(layer: ExpertLayer, start: ir.Value, end: ir.Value) -> ExpertLayer:
    """The block of some of the tokens."""
    parts = {
        name: layer.emit("Slice", getattr(layer, name), start, end, layer.emit.constant([0]))
        for name in ("x", "ids", "weights")
    }
    return replace(layer, **parts)
