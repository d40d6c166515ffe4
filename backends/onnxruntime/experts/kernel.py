"""ONNX Runtime's own `com.microsoft::MoE` operator: when it means what moec means, and how to say it.

The operator takes router logits and does softmax, top-k and optionally renormalisation itself. Any other rule with non-negative
weights is brought into that form exactly: a row of -1e4 with `log(w / max w)` at the chosen experts, renormalised by the
operator, and its output times `sum w`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moec.dialect import Activation, Routing
from moec.weights.lazy import Weight

if TYPE_CHECKING:
    import onnx_ir as ir

    from moec.backends.onnx.block import Block
    from moec.backends.onnx.emit import Emitter

CLOSED = -1e4  # a logit whose exponential is zero beside any other
TINY = 1e-30  # keeps log and division defined; an expert with a smaller share of the weight adds nothing in float32
PLAIN = ("relu", "silu", "identity")  # not "gelu": it is the tanh form on CPU and some GPUs, the erf form on others


def kernel_activation(rule: Activation) -> dict[str, Any] | None:
    """The operator's attributes for an activation, or None when it has none that computes the same."""
    if not rule.gated:
        return {"activation_type": rule.name} if rule.name in PLAIN and (rule.name != "silu" or rule.alpha == 1.0) else None
    if rule.name != "silu" or (rule.clamp_after and rule.limit):
        return None
    found = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": float(rule.alpha), "activation_beta": float(rule.beta)}
    return {**found, "swiglu_limit": float(rule.limit)} if rule.limit else found


def is_native(routing: Routing, selection_bias: bool, activation: Activation, score_before: bool) -> bool:
    """Whether router logits alone make the operator compute this block: the exporter keeps such a `moec::moe` whole.

    That is softmax over all experts, top-k, weights as they are or renormalised; also softmax over the chosen, which is the same
    number. A scale is multiplied onto the output.
    """
    plain = Routing(routing.top_k, routing.score, routing.combine, scale=routing.scale)
    if routing != plain or selection_bias or score_before or kernel_activation(activation) is None:
        return False
    return routing.combine == "softmax" or (routing.score == "softmax" and routing.combine in ("renormalize", "scores"))


def emit_native(emit: Emitter, block: Block, logits: ir.Value, bits: int = 0) -> ir.Value:
    """Emit the operator on router logits `[T, E]` for a block whose rule is native; returns `[..., H]`. `bits`: see `emit_qmoe`."""
    assert block.routing is not None
    rows = emit("Reshape", block.x, emit.constant([-1, block.hidden]))
    y = _operator(emit, block, rows, logits, normalize=block.routing.combine != "scores", bits=bits)
    scale = block.routing.scale
    y = y if scale == 1.0 else emit("Mul", y, emit.number(scale, block.dtype))
    return emit("Reshape", y, emit("Shape", block.x), allowzero=1)


def emit_portable(emit: Emitter, block: Block, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType, bits: int = 0) -> ir.Value:
    """Emit the operator for any chosen `ids` (distinct in a row) and `weights` (not negative unless K is 1), both `[..., K]`."""
    ids, weights, rows = _flat(emit, block, ids, weights, weights_dtype)
    y = _operator(emit, block, rows, _scatter(emit, block, ids, log_shares(emit, block, weights), CLOSED), normalize=True, bits=bits)
    if not block.score_before:
        total = emit("ReduceSum", weights, emit.constant([1]))
        y = emit.cast(emit("Mul", emit.cast(y, block.dtype, block.wide), total), block.wide, block.dtype)
    return emit("Reshape", y, emit("Shape", block.x), allowzero=1)


def spread_weights(emit: Emitter, block: Block, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
    """Rows `[T, H]`, and what each expert's output is multiplied by, `[T, E]` in the wide dtype: zero where it was not chosen."""
    ids, weights, rows = _flat(emit, block, ids, weights, weights_dtype)
    if block.score_before:
        weights = emit("Expand", emit.number(1.0, block.wide), emit("Shape", weights))
    return rows, _scatter(emit, block, ids, weights, 0.0)


def log_shares(emit: Emitter, block: Block, weights: ir.Value) -> ir.Value:
    """Logits of which the operator makes these weights up to a factor a row; a row of zeros gives equal ones."""
    tiny = emit.number(TINY, block.wide)
    # axis 1, never -1: ONNX Runtime's reductions take -1 wrongly when there are no tokens
    most = emit("Max", emit("ReduceMax", weights, emit.constant([1])), tiny)
    return emit("Log", emit("Max", emit("Div", weights, most), tiny))


def _flat(emit: Emitter, block: Block, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Ids and weights `[T, K]`, and rows `[T, H]`, which are multiplied by the one weight where that comes before the experts."""
    width = [-1, block.top_k]
    ids = emit("Reshape", ids, emit.constant(width))
    weights = emit.cast(emit("Reshape", weights, emit.constant(width)), weights_dtype, block.wide)
    rows = emit("Reshape", block.x, emit.constant([-1, block.hidden]))
    if block.score_before:  # K is 1: the only weight goes onto the input and none remains
        rows = emit.cast(emit("Mul", emit.cast(rows, block.dtype, block.wide), weights), block.wide, block.dtype)
    return ids, weights, rows


def _scatter(emit: Emitter, block: Block, ids: ir.Value, values: ir.Value, otherwise: float) -> ir.Value:
    """`[T, E]` with values at `ids`."""
    tokens = emit("Shape", ids, start=0, end=1)
    closed = emit("Expand", emit.number(otherwise, block.wide), emit("Concat", tokens, emit.constant([block.experts]), axis=0))
    return emit("ScatterElements", closed, ids, values, axis=1)


def _operator(emit: Emitter, block: Block, x: ir.Value, logits: ir.Value, normalize: bool, bits: int) -> ir.Value:
    from moec.backends.onnx.emit import MICROSOFT
    from moec.backends.onnxruntime.experts.qmoe import emit_qmoe, interleave

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
    return emit("MoE", x, logits, *tensors, domain=MICROSOFT, k=block.top_k, normalize_routing_weights=int(normalize), **attributes)
