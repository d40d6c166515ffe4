"""ONNX Runtime's own `com.microsoft::MoE` operator: when it means what moec means, and how to say it.

The operator takes router logits and does softmax, top-k and optionally renormalisation itself. Any other rule with
non-negative weights is brought into that form exactly: a row of -1e4 with `log(w / mean w)` at the chosen experts,
renormalised by the operator, and its output times `sum w`.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.emit import MICROSOFT, Emitter
from moec.backends.onnx.moe_node import MoeNode
from moec.backends.onnxruntime.experts.mixing import CLOSED, flatten_tokens, log_shares, scatter_weights
from moec.backends.onnxruntime.experts.native_rule import kernel_activation
from moec.backends.onnxruntime.experts.operands import interleave
from moec.backends.onnxruntime.experts.qmoe import emit_qmoe
from moec.weights.lazy import Weight


def emit_native(emit: Emitter, block: MoeNode, logits: ir.Value, bits: int = 0) -> ir.Value:
    """Emit the operator on router logits `[T, E]` for a block whose rule is native; returns `[..., H]`. `bits`: see
    `emit_qmoe`."""
    assert block.routing is not None
    rows = emit("Reshape", block.x, emit.constant([-1, block.hidden]))
    y = _operator(emit, block, rows, logits, normalize=block.routing.combine != "scores", bits=bits)
    scale = block.routing.scale
    y = y if scale == 1.0 else emit("Mul", y, emit.number(scale, block.dtype))
    return emit("Reshape", y, emit("Shape", block.x), allowzero=1)


def emit_portable(
    emit: Emitter, block: MoeNode, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType, bits: int = 0
) -> ir.Value:
    """Emit the operator for any chosen `ids` (distinct in a row) and `weights` (not negative unless K is 1), both
    `[..., K]`."""
    ids, weights, rows = flatten_tokens(emit, block, ids, weights, weights_dtype)
    y = _operator(
        emit,
        block,
        rows,
        scatter_weights(emit, block, ids, log_shares(emit, block, weights), CLOSED),
        normalize=True,
        bits=bits,
    )
    if not block.score_before:
        total = emit("ReduceSum", weights, emit.constant([1]))
        y = emit.cast(emit("Mul", emit.cast(y, block.dtype, block.wide), total), block.wide, block.dtype)
    return emit("Reshape", y, emit("Shape", block.x), allowzero=1)


def _operator(emit: Emitter, block: MoeNode, x: ir.Value, logits: ir.Value, normalize: bool, bits: int) -> ir.Value:
    logits = emit.cast(logits, block.wide, block.dtype)  # the operators want x's dtype
    if not isinstance(block.w_in, Weight) or not isinstance(block.w_out, Weight):
        return emit_qmoe(emit, block, x, logits, bits=bits)
    attributes = kernel_activation(block.activation)
    assert attributes is not None
    gated = block.activation.gated
    rows = [None if w is None else interleave(w) if gated else w for w in (block.w_in, block.b_in)]
    given = [(rows[0], "w_in"), (rows[1], "b_in"), (block.w_out, "w_out"), (block.b_out, "b_out")]
    tensors = [None if w is None else emit.weight(w, role) for w, role in given]
    while tensors[-1] is None:
        tensors.pop()
    return emit(
        "MoE",
        x,
        logits,
        *tensors,
        domain=MICROSOFT,
        k=block.top_k,
        normalize_routing_weights=int(normalize),
        **attributes,
    )
