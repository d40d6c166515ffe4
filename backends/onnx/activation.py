"""An expert's activation in ONNX operators."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from moec.backends.onnx.emit import Emitter
from moec.dialect import Activation

Silu = Callable[[Emitter, float, ir.Value, ir.DataType], ir.Value]


def silu(emit: Emitter, alpha: float, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """`x * sigmoid(alpha * x)` in standard operators."""
    scaled = x if alpha == 1.0 else emit("Mul", x, emit.number(alpha, dtype))
    return emit("Mul", x, emit("Sigmoid", scaled))


def emit_gated(
    emit: Emitter, rule: Activation, gate: ir.Value, up: ir.Value, dtype: ir.DataType, as_silu: Silu = silu
) -> ir.Value:
    """`f(gate) * (up + beta)` with its clamps, see `Activation`; all of one shape. A runtime with an operator for silu
    gives its emission."""
    if rule.cap or rule.up_cap:
        gate = _capped_silu(emit, rule, gate, dtype) if rule.cap else emit_plain(emit, rule, gate, dtype, as_silu)
        up = _soft_cap(emit, up, rule.up_cap, dtype)
    elif rule.limit:
        top = emit.number(rule.limit, dtype)
        up = emit("Clip", up, emit.number(-rule.limit, dtype), top)
        gate = gate if rule.clamp_after else emit("Min", gate, top)
        gate = emit_plain(emit, rule, gate, dtype, as_silu)
        gate = emit("Min", gate, top) if rule.clamp_after else gate
    else:
        gate = emit_plain(emit, rule, gate, dtype, as_silu)
    return emit("Mul", gate, emit("Add", up, emit.number(rule.beta, dtype)) if rule.beta else up)


def _capped_silu(emit: Emitter, rule: Activation, gate: ir.Value, dtype: ir.DataType) -> ir.Value:
    scaled = gate if rule.alpha == 1.0 else emit("Mul", gate, emit.number(rule.alpha, dtype))
    return emit("Mul", _soft_cap(emit, gate, rule.cap, dtype), emit("Sigmoid", scaled))


def _soft_cap(emit: Emitter, x: ir.Value, cap: float, dtype: ir.DataType) -> ir.Value:
    if not cap:
        return x
    number = emit.number(cap, dtype)
    return emit("Mul", emit("Tanh", emit("Div", x, number)), number)


def emit_plain(emit: Emitter, rule: Activation, x: ir.Value, dtype: ir.DataType, as_silu: Silu = silu) -> ir.Value:
    """`f(x)`, elementwise."""
    if rule.name == "identity":
        return x
    if rule.name == "silu":
        return as_silu(emit, rule.alpha, x, dtype)
    if rule.name == "relu2":
        positive = emit("Relu", x)
        return emit("Mul", positive, positive)
    if rule.name.startswith("gelu"):
        return emit("Gelu", x, approximate="tanh" if rule.name == "gelu_tanh" else "none")
    return emit({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}[rule.name], x)
