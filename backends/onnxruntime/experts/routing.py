"""The router of a whole `moec::Moe` node in standard operators: its logits, and every rule's ids and weights.

No `ReduceMax`: on CUDA that takes cuDNN, and `TopK` does not.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import MoeNode
from moec.dialect import Routing


def emit_logits(
    emit: Emitter, block: MoeNode, dtype: ir.DataType | None = None, factor: float = 1.0, apart: bool = False
) -> ir.Value:
    """Router logits `[T, E]` times a factor.

    Args:
        dtype: in which the product is taken and given: float32 whatever the block's dtype (float64 for a float64 block)
            when None.
        apart: whether a bias is a sum of its own. CUDA's `Gemm` copies its bias into the result before the product, for
            several tokens by another product.
    """
    assert block.router_weight is not None
    if apart and block.router_bias is not None:
        logits = emit_logits(emit, replace(block, router_bias=None), dtype, factor)
        want = dtype or block.wide
        bias = emit.cast(block.router_bias, block.router_bias.dtype or block.dtype, want)
        return emit("Add", logits, bias if factor == 1.0 else emit("Mul", bias, emit.number(factor, want)))
    want = dtype or block.wide
    rows = emit.cast(emit("Reshape", block.x, emit.constant([-1, block.hidden])), block.dtype, want)
    given = [v for v in (block.router_weight, block.router_bias) if v is not None]
    rule = {} if factor == 1.0 else {"alpha": factor, "beta": factor}
    return emit("Gemm", rows, *(emit.cast(v, v.dtype or block.dtype, want) for v in given), transB=1, **rule)


def emit_choice(emit: Emitter, block: MoeNode, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Ids and weights `[T, K]` by the block's rule, as `moec::route` has them; logits in the wide dtype."""
    rule = block.routing
    assert rule is not None
    plain = rule == Routing(rule.top_k, rule.score, rule.combine, scale=rule.scale) and block.selection_bias is None
    if plain and "softmax" in (rule.score, rule.combine):
        return _native_choice(emit, block, rule, logits)
    by_logits = rule.combine == "softmax" and block.selection_bias is None and rule.groups == 1
    scores = logits if by_logits else emit_scores(emit, block, logits)
    _, ids = emit.several(2, "TopK", emit_open(emit, block, scores), emit.constant([rule.top_k]))
    weights = emit("GatherElements", logits if rule.combine == "softmax" else scores, ids, axis=-1)
    if rule.combine == "renormalize":
        weights = emit("Div", weights, _total(emit, block, rule, weights))
    elif rule.combine == "softmax":
        weights = emit("Softmax", weights, axis=-1)
    elif rule.combine == "ones":
        weights = emit("Expand", emit.number(1.0, block.wide), emit("Shape", weights))
    return ids, _scaled(emit, block, weights)


def _native_choice(emit: Emitter, block: MoeNode, rule: Routing, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
    """A rule that `native_rule.is_native` admits: softmax, top-k, then as they are or renormalised (as softmax of the
    chosen logits)."""
    top, ids = emit.several(2, "TopK", logits, emit.constant([rule.top_k]))
    if rule.combine == "scores":
        weights = emit("GatherElements", emit("Softmax", logits, axis=-1), ids, axis=-1)
    elif rule.combine == "ones":
        weights = emit("Expand", emit.number(1.0, block.wide), emit("Shape", top))
    else:
        weights = emit("Softmax", top, axis=-1)
    return ids, _scaled(emit, block, weights)


def _scaled(emit: Emitter, block: MoeNode, weights: ir.Value) -> ir.Value:
    scale = block.routing.scale if block.routing is not None else 1.0
    return weights if scale == 1.0 else emit("Mul", weights, emit.number(scale, block.wide))


def _total(emit: Emitter, block: MoeNode, rule: Routing, weights: ir.Value) -> ir.Value:
    """What `renormalize` divides by, `[T, 1]`."""
    total = emit("ReduceSum", weights, emit.constant([1]))
    total = emit("Add", total, emit.number(rule.epsilon, block.wide)) if rule.epsilon else total
    return emit("Max", total, emit.number(rule.floor, block.wide)) if rule.floor else total


def emit_scores(emit: Emitter, block: MoeNode, logits: ir.Value) -> ir.Value:
    """Every expert's score `[T, E]`: softmax, sigmoid, root of softplus, or the logits themselves."""
    assert block.routing is not None
    one = emit.number(1.0, block.wide)
    if block.routing.score == "softmax":
        return emit("Softmax", logits, axis=-1)
    if block.routing.score == "sigmoid":  # not `Sigmoid`: see `moec.dialect.routing`
        return emit("Reciprocal", emit("Add", emit("Exp", emit("Neg", logits)), one))
    return emit("Sqrt", emit("Softplus", logits)) if block.routing.score == "sqrt_softplus" else logits


def emit_open(emit: Emitter, block: MoeNode, scores: ir.Value) -> ir.Value:
    """By what a token's experts are chosen, `[T, E]`: scores and the correction bias, groups closed that may not be
    chosen from."""
    rule, bias = block.routing, block.selection_bias
    assert rule is not None
    choice = scores if bias is None else emit("Add", scores, emit.cast(bias, bias.dtype or block.wide, block.wide))
    if rule.groups == 1:
        return choice
    grouped = emit("Reshape", choice, emit.constant([-1, rule.groups, block.experts // rule.groups]))
    counted = 2 if rule.group_score == "top2" else 1
    best, _ = emit.several(2, "TopK", grouped, emit.constant([counted]))
    best = emit("ReduceSum", best, emit.constant([2])) if counted == 2 else best  # [T, G, 1]
    kept, _ = emit.several(2, "TopK", best, emit.constant([rule.top_groups]), axis=1)
    closed = emit.number(0.0 if rule.closed_as_zero else float("-inf"), block.wide)
    open_ = emit("GreaterOrEqual", best, emit_last(emit, kept, rule.top_groups))
    return emit("Reshape", emit("Where", open_, grouped, closed), emit.constant([-1, block.experts]))


def emit_last(emit: Emitter, top: ir.Value, count: int) -> ir.Value:
    """The least of the `count` largest along axis 1, in their order."""
    last = (emit.constant([n]) for n in (count - 1, count, 1))
    return top if count == 1 else emit("Slice", top, *last)
