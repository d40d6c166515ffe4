"""The export of ONNX Runtime: a `moec::moe` stays whole where the runtime's own MoE operator has its routing, and for
CUDA where it can be told; for moec's own kernel always."""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx import export
from moec.backends.onnx.assumed import write_assumptions
from moec.backends.onnxruntime.experts.native_rule import has_logits, is_native
from moec.dialect import Activation, Routing
from moec.program.program import Program

OPSET = 20


def to_onnx(program: Program, provider: str = "cpu", own: bool = False) -> ir.Model:
    """The program as an ONNX model with lazy initializers and opaque `moec::Moe` and `moec::Experts` nodes, for the
    provider `cpu` or `cuda`, or moec's `own` kernel; raises M208, see `export.to_onnx`."""
    kept = _is_routing if own else is_native if provider == "cpu" else _is_told
    model = export.to_onnx(program, OPSET, kept)
    export.strip_traces(model)
    write_assumptions(model, program.assumptions)
    return model


def _is_told(routing: Routing, selection_bias: bool, activation: Activation, score_before: bool) -> bool:
    return is_native(routing, selection_bias, activation, score_before) or has_logits(routing, activation, score_before)


def _is_routing(routing: Routing, selection_bias: bool, activation: Activation, score_before: bool) -> bool:
    return True
