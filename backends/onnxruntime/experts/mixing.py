"""How an ONNX operator mixes experts: the activations it has, and weights that stand for any combination of them."""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import MoeNode

CLOSED = -1e4  # a logit whose exponential is zero beside any other
TINY = 1e-30  # keeps log and division defined; an expert with a smaller share of the weight adds nothing in float32


def spread_weights(
    emit: Emitter, block: MoeNode, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType
) -> tuple[ir.Value, ir.Value]:
    """Rows `[T, H]`, and what each expert's output is multiplied by, `[T, E]` in the wide dtype: zero where it was not
    chosen."""
    ids, weights, rows = flatten_tokens(emit, block, ids, weights, weights_dtype)
    if block.score_before:
        weights = emit("Expand", emit.number(1.0, block.wide), emit("Shape", weights))
    return rows, scatter_weights(emit, block, ids, weights, 0.0)


def log_shares(emit: Emitter, block: MoeNode, weights: ir.Value) -> ir.Value:
    """Logits of which the operator makes these weights up to a factor a row; a row of zeros gives equal ones.

    Shares are of a row's mean, which keeps logits near zero, where half precision is fine: CUDA has no `ReduceMax`
    without cuDNN.
    """
    tiny = emit.number(TINY, block.wide)
    # axis 1, never -1: ONNX Runtime's reductions take -1 wrongly when there are no tokens
    mean = emit("Max", emit("ReduceMean", weights, emit.constant([1])), tiny)
    return emit("Log", emit("Max", emit("Div", weights, mean), tiny))


def flatten_tokens(
    emit: Emitter, block: MoeNode, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType, scaled: bool = True
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Ids and weights `[T, K]`, and rows `[T, H]`, which are multiplied by the one weight where that comes before the
    experts, unless not `scaled`."""
    width = [-1, block.top_k]
    ids = emit("Reshape", ids, emit.constant(width))
    weights = emit.cast(emit("Reshape", weights, emit.constant(width)), weights_dtype, block.wide)
    rows = emit("Reshape", block.x, emit.constant([-1, block.hidden]))
    if block.score_before and scaled:  # K is 1: the only weight goes onto the input and none remains
        rows = emit.cast(emit("Mul", emit.cast(rows, block.dtype, block.wide), weights), block.wide, block.dtype)
    return ids, weights, rows


def scatter_weights(emit: Emitter, block: MoeNode, ids: ir.Value, values: ir.Value, otherwise: float) -> ir.Value:
    """`[T, E]` with values at `ids`."""
    tokens = emit("Shape", ids, start=0, end=1)
    closed = emit(
        "Expand", emit.number(otherwise, block.wide), emit("Concat", tokens, emit.constant([block.experts]), axis=0)
    )
    return emit("ScatterElements", closed, ids, values, axis=1)
