"""ONNX Runtime's own `com.microsoft::MoE` operator: when it means what moec means, and how to say it.

The operator takes router logits and does softmax, top-k and optionally renormalisation itself. Any other rule with
non-negative weights is brought into that form exactly: a row of -1e4 with `log(w / mean w)` at the chosen experts,
renormalised by the operator, and its output times `sum w`. Where the block has its router, a device gets the form of
fewest kernels, see `emit_told`.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.emit import MICROSOFT, Emitter
from moec.backends.onnx.moe_node import MoeNode
from moec.backends.onnxruntime.experts.chosen import emit_operator_logits, keeps_dtype
from moec.backends.onnxruntime.experts.mixing import CLOSED, flatten_tokens, log_shares, scatter_weights
from moec.backends.onnxruntime.experts.native_rule import kernel_activation
from moec.backends.onnxruntime.experts.operands import interleave
from moec.backends.onnxruntime.experts.qmoe import emit_qmoe
from moec.backends.onnxruntime.experts.routing import emit_logits
from moec.weights.lazy import Weight


def emit_native(emit: Emitter, block: MoeNode, logits: ir.Value, bits: int = 0) -> ir.Value:
    """Emit the operator on router logits `[T, E]` for a block whose rule is native; returns `[..., H]`. `bits`: see
    `emit_qmoe`."""
    assert block.routing is not None
    rows = emit("Reshape", block.x, emit.constant([-1, block.hidden]))
    logits = emit.cast(logits, block.wide, block.dtype)  # the operators want x's dtype
    y = _operator(emit, block, rows, logits, normalize=block.routing.combine != "scores", bits=bits)
    y = _times(emit, block, y, block.routing.scale)
    return emit("Reshape", y, emit("Shape", block.x), allowzero=1)


def emit_told(emit: Emitter, block: MoeNode, native: bool, bits: int = 0) -> ir.Value:
    """Emit the operator for a block with a router of its own, in few kernels and with nothing on the host.

    Args:
        native: logits alone tell the operator all; else `native_rule.has_logits`. Router logits are then the product in
            the block's own dtype, as the operator rounds them to that anyway: no cast before it and none after.
        bits: see `emit_qmoe`.

    Returns:
        `[..., H]` in the block's dtype.
    """
    rule, total = block.routing, None
    assert rule is not None
    same = block.router_weight is not None and block.router_weight.dtype == block.dtype
    if native:
        dtype = block.dtype if same else block.wide
        logits = emit_logits(emit, block, dtype, apart=True)
    else:
        dtype = block.dtype if same and keeps_dtype(block) else block.wide
        logits, total = emit_operator_logits(emit, block, dtype)
    logits = emit.cast(logits, dtype, block.dtype)
    factor: ir.Value | float = rule.scale * (rule.top_k if rule.combine == "ones" else 1)
    plain = native and rule.combine == "scores"
    # On the CPU the operator writes weights that it does not renormalise over an input of the same shape that nobody
    # reads after it, https://github.com/microsoft/onnxruntime/issues/33866. Rows of a number that is not named (-1) are
    # of no shape that the runtime knows.
    flat = plain or total is not None or block.x.shape is None or len(block.x.shape) not in (2, 3)
    rows = emit("Reshape", block.x, emit.constant([-1, block.hidden])) if flat else block.x
    factor = factor if total is None else emit.cast(total, dtype, block.dtype)
    rows = _times(emit, block, rows, factor) if block.score_before else rows
    y = _operator(emit, block, rows, logits, normalize=not plain, bits=bits)
    y = y if block.score_before else _times(emit, block, y, factor)
    return emit("Reshape", y, emit("Shape", block.x), allowzero=1) if flat else y


def _times(emit: Emitter, block: MoeNode, rows: ir.Value, factor: ir.Value | float) -> ir.Value:
    if isinstance(factor, float | int):
        return rows if factor == 1.0 else emit("Mul", rows, emit.number(float(factor), block.dtype))
    return emit("Mul", rows, factor)


def emit_portable(
    emit: Emitter, block: MoeNode, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType, bits: int = 0
) -> ir.Value:
    """Emit the operator for any chosen `ids` (distinct in a row) and `weights` (not negative unless K is 1), both
    `[..., K]`."""
    ids, weights, rows = flatten_tokens(emit, block, ids, weights, weights_dtype)
    logits = scatter_weights(emit, block, ids, log_shares(emit, block, weights), CLOSED)
    y = _operator(emit, block, rows, emit.cast(logits, block.wide, block.dtype), normalize=True, bits=bits)
    if not block.score_before:
        total = emit("ReduceSum", weights, emit.constant([1]))
        y = emit.cast(emit("Mul", emit.cast(y, block.dtype, block.wide), total), block.wide, block.dtype)
    return emit("Reshape", y, emit("Shape", block.x), allowzero=1)


def _operator(emit: Emitter, block: MoeNode, x: ir.Value, logits: ir.Value, normalize: bool, bits: int) -> ir.Value:
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
