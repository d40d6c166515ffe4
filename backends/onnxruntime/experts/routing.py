"""The router of a whole `moec::Moe` node in standard operators: its logits, and the rules that `kernel.is_native`
admits."""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import MoeNode


def emit_logits(emit: Emitter, block: MoeNode) -> ir.Value:
    """Router logits `[T, E]`, in float32 whatever the block's dtype (float64 for a float64 block)."""
    assert block.router_weight is not None
    rows = emit.cast(emit("Reshape", block.x, emit.constant([-1, block.hidden])), block.dtype, block.wide)
    inputs = [
        rows,
        *(
            emit.cast(v, v.dtype or block.dtype, block.wide)
            for v in (block.router_weight, block.router_bias)
            if v is not None
        ),
    ]
    return emit("Gemm", *inputs, transB=1)


def emit_choice(emit: Emitter, block: MoeNode, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Ids and weights `[T, K]` by a native rule: softmax, top-k, then as they are or renormalised (as softmax of the
    chosen logits)."""
    assert block.routing is not None
    top, ids = emit.several(2, "TopK", logits, emit.constant([block.top_k]))
    if block.routing.combine == "scores":
        weights = emit("GatherElements", emit("Softmax", logits, axis=-1), ids, axis=-1)
    else:
        weights = emit("Softmax", top, axis=-1)
    scale = block.routing.scale
    return ids, weights if scale == 1.0 else emit("Mul", weights, emit.number(scale, block.wide))
