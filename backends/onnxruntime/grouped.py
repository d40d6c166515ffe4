"""The experts as one pair of matrix products each, over exactly the rows that chose them.

Rows are sorted by expert once, cut into E pieces by one `Split`, run through E plain `Gemm`s, joined, put back in the tokens'
order and mixed by one batched product `weights [T,1,K] x outputs [T,K,H]`. An expert that no token chose gets zero rows and
returns at once, so no `If` is needed; the weights are constants of ordinary `Gemm`s, so the runtime packs them once at load.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.backends.onnxruntime.block import Block
from moec.backends.onnxruntime.emit import MICROSOFT, Emitter
from moec.dialect import Activation
from moec.weights import Weight, select


def emit_grouped(emit: Emitter, block: Block, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType) -> ir.Value:
    """Emit the experts for `ids` and `weights` `[..., K]`; returns `[..., H]` in the block's dtype. Any number of tokens, also none."""
    flat = emit("Reshape", ids, emit.constant([-1]))
    order, counts = _sort(emit, flat, block.experts)
    tokens = order if block.top_k == 1 else emit("Div", order, emit.constant(block.top_k))
    rows = emit("Gather", emit("Reshape", block.x, emit.constant([-1, block.hidden])), tokens)
    weights = emit.cast(weights, weights_dtype, block.wide)
    if block.score_before:
        factors = emit("Gather", emit("Reshape", weights, emit.constant([-1, 1])), order)
        rows = emit.cast(emit("Mul", emit.cast(rows, block.dtype, block.wide), factors), block.wide, block.dtype)
    outputs = _experts(emit, block, rows, counts)
    outputs = emit.cast(emit("Gather", outputs, _inverse(emit, flat, order)), block.dtype, block.wide)
    mixed = emit.cast(_mix(emit, block, outputs, weights), block.wide, block.dtype)
    return emit("Reshape", mixed, emit("Shape", block.x), allowzero=1)


def _sort(emit: Emitter, flat: ir.Value, experts: int) -> tuple[ir.Value, ir.Value]:
    """The routed rows' order by expert `[N]`, and how many each expert has `[E]`."""
    chosen = emit("Equal", flat, emit.constant(np.arange(experts).reshape(-1, 1)))  # [E, N]
    counts = emit("ReduceSum", emit("Cast", chosen, to=int(ir.DataType.INT64)), emit.constant([1]), keepdims=0)
    return emit("Gather", emit("NonZero", chosen), emit.constant(1), axis=0), counts


def _inverse(emit: Emitter, flat: ir.Value, order: ir.Value) -> ir.Value:
    """Where each routed row went: the inverse permutation of `order`."""
    places = emit("Range", emit.constant(0), emit("Squeeze", emit("Shape", flat)), emit.constant(1))
    return emit("ScatterElements", order, order, places, axis=0)


def _experts(emit: Emitter, block: Block, rows: ir.Value, counts: ir.Value) -> ir.Value:
    if block.experts == 1:
        return _expert(emit, block, 0, rows)
    pieces = emit.several(block.experts, "Split", rows, counts, axis=0)
    return emit("Concat", *(_expert(emit, block, e, piece) for e, piece in enumerate(pieces)), axis=0)


def _expert(emit: Emitter, block: Block, e: int, rows: ir.Value) -> ir.Value:
    hidden = _linear(emit, rows, block.w_in, block.b_in, e, "in")
    return _linear(emit, emit_activation(emit, block, hidden), block.w_out, block.b_out, e, "out")


def _linear(emit: Emitter, rows: ir.Value, weight: Weight, bias: Weight | None, e: int, role: str) -> ir.Value:
    inputs = [rows, emit.weight(select(weight, e), f"{e}.w_{role}")]
    if bias is not None:
        inputs.append(emit.weight(select(bias, e), f"{e}.b_{role}"))
    return emit("Gemm", *inputs, transB=1)


def _mix(emit: Emitter, block: Block, outputs: ir.Value, weights: ir.Value) -> ir.Value:
    """Sum each token's K outputs `[N, H]` by weight; returns `[T, H]`, or `[T, 1, H]`."""
    if block.top_k == 1:
        return outputs if block.score_before else emit("Mul", outputs, emit("Reshape", weights, emit.constant([-1, 1])))
    stacked = emit("Reshape", outputs, emit.constant([-1, block.top_k, block.hidden]))
    if block.score_before:
        return emit("ReduceSum", stacked, emit.constant([1]), keepdims=0)
    return emit("MatMul", emit("Reshape", weights, emit.constant([-1, 1, block.top_k])), stacked)


def emit_activation(emit: Emitter, block: Block, hidden: ir.Value) -> ir.Value:
    """`Activation` on `[N, F*I]` in ONNX operators; returns `[N, I]`."""
    rule = block.activation
    if not rule.gated:
        return _function(emit, rule, hidden, block.dtype)
    half = block.w_out.shape[2]
    gate, up = emit.several(2, "Split", hidden, emit.constant([half, half]), axis=-1)
    if rule.limit:
        top = emit.number(rule.limit, block.dtype)
        up = emit("Clip", up, emit.number(-rule.limit, block.dtype), top)
        gate = gate if rule.clamp_after else emit("Min", gate, top)
        gate = _function(emit, rule, gate, block.dtype)
        gate = emit("Min", gate, top) if rule.clamp_after else gate
    else:
        gate = _function(emit, rule, gate, block.dtype)
    return emit("Mul", gate, emit("Add", up, emit.number(rule.beta, block.dtype)) if rule.beta else up)


def _function(emit: Emitter, rule: Activation, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    if rule.name == "identity":
        return x
    if rule.name == "silu":
        return _silu(emit, rule.alpha, x, dtype)
    if rule.name == "relu2":
        positive = emit("Relu", x)
        return emit("Mul", positive, positive)
    if rule.name.startswith("gelu"):
        return emit("Gelu", x, approximate="tanh" if rule.name == "gelu_tanh" else "none")
    return emit({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}[rule.name], x)


def _silu(emit: Emitter, alpha: float, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    if dtype != ir.DataType.DOUBLE:  # one kernel; it has no float64 form on CPU
        return emit("QuickGelu", x, domain=MICROSOFT, alpha=alpha)
    scaled = x if alpha == 1.0 else emit("Mul", x, emit.number(alpha, dtype))
    return emit("Mul", x, emit("Sigmoid", scaled))
