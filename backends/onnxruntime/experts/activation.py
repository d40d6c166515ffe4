"""An expert's activation, with ONNX Runtime's own operator for silu."""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx import activation
from moec.backends.onnx.emit import MICROSOFT, Emitter
from moec.dialect import Activation


def emit_gated(emit: Emitter, rule: Activation, gate: ir.Value, up: ir.Value, dtype: ir.DataType) -> ir.Value:
    """`f(gate) * (up + beta)` with its clamps, see `Activation`; all of one shape."""
    return activation.emit_gated(emit, rule, gate, up, dtype, _silu)


def emit_plain(emit: Emitter, rule: Activation, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """`f(x)`, elementwise."""
    return activation.emit_plain(emit, rule, x, dtype, _silu)


def _silu(emit: Emitter, alpha: float, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    if dtype != ir.DataType.DOUBLE:  # one kernel; it has no float64 form on CPU
        return emit("QuickGelu", x, domain=MICROSOFT, alpha=alpha)
    return activation.silu(emit, alpha, x, dtype)
