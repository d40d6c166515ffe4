"""Experts of several widths as one QMoE operator for each width.

That is what they become where rounding is allowed, and on CUDA: each operator is given the weights of its own experts,
and zero for all tokens that chose none of them; the outputs add up. Where nothing may be rounded they are one operator,
see `operands`.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import MoeNode
from moec.backends.onnxruntime.experts.mixing import log_shares, spread_weights
from moec.backends.onnxruntime.experts.qmoe import emit_qmoe, kernel_bits
from moec.weights.lazy import Weight
from moec.weights.widths import taken


def emit_each_width(
    emit: Emitter, block: MoeNode, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType, provider: str
) -> ir.Value:
    """Emit one operator for each width of a block, for any chosen `ids` (distinct in a row) and `weights` (not
    negative), both `[..., K]`."""
    rows, spread = spread_weights(emit, block, ids, weights, weights_dtype)
    total: ir.Value | None = None
    for part in block.parts:
        own = replace(
            block, w_in=part.w_in, w_out=part.w_out, parts=(), top_k=min(block.top_k, len(part.experts)),
            b_in=_own(block.b_in, part.experts), b_out=_own(block.b_out, part.experts),
        )  # fmt: skip
        share = emit("Gather", spread, emit.constant(list(part.experts)), axis=1)
        if provider == "cuda":
            y = _by_logits(emit, own, rows, share)
        else:
            share = emit.cast(share, block.wide, block.dtype)
            y = emit.cast(
                emit_qmoe(emit, own, rows, share, share, kernel_bits(own, provider, rounded=True)),
                block.dtype,
                block.wide,
            )
        total = y if total is None else emit("Add", total, y)
    assert total is not None
    return emit("Reshape", emit.cast(total, block.wide, block.dtype), emit("Shape", block.x), allowzero=1)


def _own(bias: Weight | None, experts: tuple[int, ...]) -> Weight | None:
    return None if bias is None else taken(bias, experts)


def _by_logits(emit: Emitter, block: MoeNode, rows: ir.Value, share: ir.Value) -> ir.Value:
    """The operator where it reads no weights: it renormalises those of the experts that it has, and what it gives is
    multiplied by their sum, which is zero where it has none of a token's experts. `share [T, E]` and the result in the
    wide dtype."""
    y = emit_qmoe(emit, block, rows, emit.cast(log_shares(emit, block, share), block.wide, block.dtype))
    return emit("Mul", emit.cast(y, block.dtype, block.wide), emit("ReduceSum", share, emit.constant([1])))
