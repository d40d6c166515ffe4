"""The export of ONNX Runtime: a `moec::moe` stays whole where the runtime's own MoE operator has its routing."""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx import export
from moec.backends.onnx.assumed import write_assumptions
from moec.backends.onnxruntime.experts.native_rule import is_native
from moec.program.program import Program

OPSET = 20


def to_onnx(program: Program) -> ir.Model:
    """The program as an ONNX model with lazy initializers and opaque `moec::Moe` and `moec::Experts` nodes; raises
    M208, see `export.to_onnx`."""
    model = export.to_onnx(program, OPSET, is_native)
    export.strip_traces(model)
    write_assumptions(model, program.assumptions)
    return model
