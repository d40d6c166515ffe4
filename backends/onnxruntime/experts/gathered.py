"""Experts on a device where no operator reads them as they are stored, without a look at data on the host.

The experts that tokens chose are gathered, packed ones unpacked on the way: one for each routed row where those are
fewer than there are experts, else all in order. Which of the two is a matter of shapes alone, so there is no `If`, and
a step can be recorded as a CUDA graph. Then either the MoE operator runs on what was gathered, or, for an activation
that it lacks, three plain products: every token through every gathered expert, mixed by weights that are zero where it
did not choose it. With few tokens that reads each chosen expert once, which is all that costs; with T tokens it
computes experts / K times more than the grouped form, and holds `experts * T * (H + rows)` numbers.

The grouped form would launch two products for each of all experts and wait for their counts on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from moec.backends.onnx.emit import MICROSOFT, Emitter
from moec.backends.onnx.moe_node import MoeNode
from moec.backends.onnx.packed import packed_zeros
from moec.backends.onnxruntime.experts.activation import emit_gated, emit_plain
from moec.backends.onnxruntime.experts.mixing import CLOSED, flatten_tokens, log_shares
from moec.backends.onnxruntime.experts.native_rule import kernel_activation
from moec.backends.onnxruntime.experts.operands import interleave
from moec.weights.lazy import Weight
from moec.weights.weight import PackedWeight


@dataclass(frozen=True)
class Gathered:
    """Experts that stand in a row.

    Attributes:
        index: which they are, `[n]`. count: `[1]`, on the host: n, at least K.
        places: where each of a token's experts stands, `[T, K]`.
    """

    index: ir.Value
    count: ir.Value
    places: ir.Value


def gather_chosen(emit: Emitter, block: MoeNode, ids: ir.Value) -> Gathered:
    """The experts of `ids [T, K]`: those of each routed row, or all of them where rows are as many."""
    flat, zero = emit("Reshape", ids, emit.constant([-1])), emit.constant([0])
    routed, all_ = emit("Shape", flat), emit.constant([block.experts])
    count = emit("Max", emit("Min", routed, all_), emit.constant([block.top_k]))
    start = emit("Mul", routed, emit("Min", emit("Div", routed, all_), emit.constant([1])))  # 0, or behind all rows
    experts = emit.constant(np.arange(block.experts))
    index = emit("Slice", emit("Concat", flat, experts, axis=0), start, emit("Add", start, count), zero)
    rows = emit("Range", emit.constant(0), emit("Squeeze", routed), emit.constant(1))
    places = emit("Slice", emit("Concat", rows, flat, axis=0), start, emit("Add", start, routed), zero)
    return Gathered(index, count, emit("Reshape", places, emit.constant([-1, block.top_k])))


def emit_on_gathered(
    emit: Emitter, block: MoeNode, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType, operator: bool
) -> ir.Value:
    """Emit the experts for `ids` and `weights`, both `[..., K]`.

    Args:
        operator: through the MoE operator, for an activation that it has, distinct ids and weights that are not
            negative.

    Returns:
        `[..., H]` in the block's dtype.
    """
    ids, weights, rows = flatten_tokens(emit, block, ids, weights, weights_dtype, scaled=operator)
    chosen = gather_chosen(emit, block, ids)
    if not operator:
        y = _by_products(emit, block, chosen, weights, rows)
    else:
        y = _by_operator(emit, block, chosen, log_shares(emit, block, weights), rows)
        if not block.score_before:
            total = emit("ReduceSum", weights, emit.constant([1]))
            y = emit("Mul", y, emit.cast(total, block.wide, block.dtype))
    return emit("Reshape", y, emit("Shape", block.x), allowzero=1)


def emit_renormalized(emit: Emitter, block: MoeNode, logits: ir.Value) -> ir.Value:
    """Emit the experts through the MoE operator for a block that mixes by the softmax of the chosen logits, times a
    scale: it is given these logits `[T, K]` themselves. Returns `[..., H]`."""
    rule = block.routing
    assert rule is not None
    top, ids = emit.several(2, "TopK", logits, emit.constant([rule.top_k]))
    rows = emit("Reshape", block.x, emit.constant([-1, block.hidden]))
    y = _by_operator(emit, block, gather_chosen(emit, block, ids), top, rows)
    y = y if rule.scale == 1.0 else emit("Mul", y, emit.number(rule.scale, block.dtype))
    return emit("Reshape", y, emit("Shape", block.x), allowzero=1)


def _at_places(
    emit: Emitter, block: MoeNode, chosen: Gathered, values: ir.Value, otherwise: float, axis: int
) -> ir.Value:
    """Values `[T, K]` at a token's places, `[n, T, K]` with axis 0 and `[T, n, K]` with 1: a comparison, where
    scattering would take a copy more."""
    numbers = emit("Range", emit.constant(0), emit("Squeeze", chosen.count), emit.constant(1))
    numbers = emit("Unsqueeze", numbers, emit.constant([1, 2] if axis == 0 else [1]))
    places, values = (v if axis == 0 else emit("Unsqueeze", v, emit.constant([1])) for v in (chosen.places, values))
    return emit("Where", emit("Equal", numbers, places), values, emit.number(otherwise, block.wide))


# ---------------------------------------------------------------------- the operator
def _by_operator(emit: Emitter, block: MoeNode, chosen: Gathered, logs: ir.Value, rows: ir.Value) -> ir.Value:
    """The operator on rows `[T, H]` with logits `[T, K]` of the chosen, by whose softmax it mixes."""
    best, _ = emit.several(2, "TopK", _at_places(emit, block, chosen, logs, CLOSED, 1), emit.constant([1]))
    logits = emit.cast(emit("Squeeze", best, emit.constant([2])), block.wide, block.dtype)
    turned, rule = block.activation.gated, kernel_activation(block.activation)
    assert rule is not None
    tensors = [
        _matrices(emit, chosen, block.w_in, "w_in", turned),
        _biases(emit, chosen, block.b_in, "b_in", turned),
        _matrices(emit, chosen, block.w_out, "w_out"),
        _biases(emit, chosen, block.b_out, "b_out"),
    ]
    while tensors[-1] is None:
        tensors.pop()
    attributes = {"k": block.top_k, "normalize_routing_weights": 1, **rule}
    return emit("MoE", rows, logits, *tensors, domain=MICROSOFT, **attributes)


# ---------------------------------------------------------------------- products
def _by_products(emit: Emitter, block: MoeNode, chosen: Gathered, weights: ir.Value, rows: ir.Value) -> ir.Value:
    """Rows `[T, H]` through all gathered experts, `[n, T, …]`; returns `[T, H]`."""
    shares = _shares(emit, block, chosen, weights)
    if block.score_before:
        scale, shares = shares, _shares(emit, block, chosen, _ones(emit, block, weights))
    # repeated, as a product that repeats them itself copies three lists of addresses to the device
    rows = emit("Expand", rows, emit("Concat", chosen.count, emit.constant([1, 1]), axis=0))
    hidden = emit("FusedMatMul", rows, _matrices(emit, chosen, block.w_in, "w_in"), domain=MICROSOFT, transB=1)
    hidden = emit("Mul", hidden, emit.cast(scale, block.wide, block.dtype)) if block.score_before else hidden
    hidden = _plus(emit, hidden, _biases(emit, chosen, block.b_in, "b_in"))
    if block.activation.gated:
        inner = block.w_out.shape[2]
        gate, up = emit.several(2, "Split", hidden, emit.constant([inner, inner]), axis=2)
        active = emit_gated(emit, block.activation, gate, up, block.dtype)
    else:
        active = emit_plain(emit, block.activation, hidden, block.dtype)
    # what a token did not choose might be infinite, and is not to be multiplied by zero
    nothing = emit("Equal", shares, emit.number(0.0, block.wide))
    active = emit("Where", nothing, emit.number(0.0, block.dtype), active)
    outputs = emit("FusedMatMul", active, _matrices(emit, chosen, block.w_out, "w_out"), domain=MICROSOFT, transB=1)
    outputs = emit.cast(_plus(emit, outputs, _biases(emit, chosen, block.b_out, "b_out")), block.dtype, block.wide)
    mixed = emit("ReduceSum", emit("Mul", outputs, shares), emit.constant([0]), keepdims=0)
    return emit.cast(mixed, block.wide, block.dtype)


def _shares(emit: Emitter, block: MoeNode, chosen: Gathered, weights: ir.Value) -> ir.Value:
    """What each gathered expert counts for each token, `[n, T, 1]`: weights of one place add up."""
    return emit("ReduceSum", _at_places(emit, block, chosen, weights, 0.0, 0), emit.constant([2]))


def _ones(emit: Emitter, block: MoeNode, weights: ir.Value) -> ir.Value:
    return emit("Expand", emit.number(1.0, block.wide), emit("Shape", weights))


def _plus(emit: Emitter, rows: ir.Value, bias: ir.Value | None) -> ir.Value:
    return rows if bias is None else emit("Add", rows, emit("Unsqueeze", bias, emit.constant([1])))


# ---------------------------------------------------------------------- what is gathered
def _matrices(
    emit: Emitter, chosen: Gathered, weight: Weight | PackedWeight, role: str, turned: bool = False
) -> ir.Value:
    """Matrices `[n, out, in]`; `turned`: gate and up rows in turns."""
    if isinstance(weight, Weight):
        return emit("Gather", emit.weight(interleave(weight) if turned else weight, role), chosen.index)
    weight = weight.each(interleave) if turned else weight
    rule = {"bits": weight.bits, "block_size": weight.group, "gather_axis": 0, "quantize_axis": 2}
    codes, scales = emit.weight(weight.packed, f"{role}.packed"), emit.weight(weight.scale, f"{role}.scales")
    zeros = [] if weight.zero is None else [emit.weight(packed_zeros(weight.zero, weight.bits), f"{role}.zeros")]
    return emit("GatherBlockQuantized", codes, chosen.index, scales, *zeros, domain=MICROSOFT, **rule)


def _biases(emit: Emitter, chosen: Gathered, bias: Weight | None, role: str, turned: bool = False) -> ir.Value | None:
    """Biases `[n, out]`."""
    return (
        None if bias is None else emit("Gather", emit.weight(interleave(bias) if turned else bias, role), chosen.index)
    )
