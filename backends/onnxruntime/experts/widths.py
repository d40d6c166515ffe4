"""The codes of packed experts as the QMoE operator reads them: as they are stored, or wider; and experts of several
widths in one block.

On the CPU only 4 bits have an exact kernel that is fast; that of 2 bits, for blocks of 16, is slower than unpacked
products (8 experts of 1024 x 2048, two of them a token, half of 2 bits and half of 4, one core: 16.4 ms a token as two
operators, 1.1 as one of 4 bits). So where nothing may be rounded, 2 bits become 4 when the engine is loaded: the file
has the narrow codes, the runtime folds a table look-up once, and experts of 2 and of 4 bits are one operator. Where
rounding is allowed, and on CUDA, each width is an operator of its own, given the weights of its own experts and zero
for all tokens that chose none of them; the outputs add up.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from moec.backends.onnx.block import Block
from moec.backends.onnx.emit import Emitter
from moec.backends.onnxruntime.experts.mixing import log_shares, spread_weights
from moec.backends.onnxruntime.experts.qmoe import emit_qmoe, kernel_bits
from moec.weights.lazy import Weight
from moec.weights.widths import taken


# ---------------------------------------------------------------------- an operator a width
def emit_each_width(
    emit: Emitter, block: Block, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType, provider: str
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


def _by_logits(emit: Emitter, block: Block, rows: ir.Value, share: ir.Value) -> ir.Value:
    """The operator where it reads no weights: it renormalises those of the experts that it has, and what it gives is
    multiplied by their sum, which is zero where it has none of a token's experts. `share [T, E]` and the result in the
    wide dtype."""
    y = emit_qmoe(emit, block, rows, emit.cast(log_shares(emit, block, share), block.wide, block.dtype))
    return emit("Mul", emit.cast(y, block.dtype, block.wide), emit("ReduceSum", share, emit.constant([1])))
