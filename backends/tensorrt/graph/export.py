"""From a Program to the ONNX file that TensorRT's parser reads: standard operators only, checked against the parser's
table before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from moec.backends.onnx.emit import DOMAIN, Emitter
from moec.backends.onnx.export import strip_traces, to_onnx
from moec.backends.onnx.folding import fold
from moec.backends.tensorrt.graph.attention import lower_attention
from moec.backends.tensorrt.graph.moe import lower_experts
from moec.backends.tensorrt.graph.operators import check, table_of
from moec.backends.tensorrt.graph.quantized import lower_quantized
from moec.backends.tensorrt.graph.small_floats import OPSET as FLOATS_OPSET
from moec.backends.tensorrt.policy import Plan
from moec.backends.tensorrt.session.cpu_stand_in import DECODED
from moec.errors import MoecError
from moec.program.program import Program
from moec.progress import Progress

# packed weights need it; from 23 on torch.onnx writes `Attention`, which TensorRT builds only where it has a fused
# kernel
OPSET = 21
FLOATS_IR_VERSION = 11  # of the file format, for the same floats
EXTERNAL_BYTES = 1024  # initializers from this size on go into the file beside


def write_onnx(
    program: Program, path: Path, precision: torch.dtype, plan: Plan, progress: Progress | None = None
) -> dict[str, Any]:
    """Write `path` and, beside it, `<path>.data` with the weights, one block in memory at a time.

    Args:
        program: legalized, its floating-point weights in `precision`.
        path: of the ONNX file.
        precision: what the engine computes in; routers compute in float32 whatever it is.
        plan: what the engine is for, see `policy`.

    Returns:
        Facts: `blocks` (one a MoE block: the lowering that it got and why, the bound of its memory in bytes),
            `attention`, `packed`, `opset`,
        `precision`, `operators`, the table that the graph was checked against, `stand_in`, what ONNX Runtime computes
            otherwise, and `unproven`,
        what its proof leaves open.

    Raises:
        MoecError: M208 when torch.onnx has no translation for an operator, the policy refuses a block, or the parser
            would refuse a node.
    """
    model, facts = lowered(program, plan)
    total: int = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    progress = progress or Progress()
    written = lambda tensor, info: progress.advance(info.offset + tensor.nbytes, total, "B", tensor.name or "")  # noqa: E731
    try:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=EXTERNAL_BYTES, callback=written)
    except OSError as error:
        raise MoecError(
            "M210",
            f"the engine cannot be written: {error.strerror or error}",
            str(path),
            "free space there, or choose another --out",
        ) from error
    return {**facts, "precision": str(precision).removeprefix("torch.")}


def lowered(program: Program, plan: Plan) -> tuple[ir.Model, dict[str, Any]]:
    """The ONNX model of standard operators in memory, weights lazy, and the facts about it; raises as `write_onnx`
    does."""
    model = to_onnx(program, OPSET)
    facts: dict[str, Any] = {
        "attention": lower_attention(model),
        "blocks": lower_experts(model, plan),
        "packed": lower_quantized(model),
    }
    model.opset_imports.pop(DOMAIN, None)
    admit_small_floats(model)
    tidy(model)
    table = table_of(plan.edition, plan.version)
    violations = check(model, table)
    if violations:
        first, more = violations[0], f"; {len(violations) - 1} more" if len(violations) > 1 else ""
        raise MoecError("M208", f"{table.title} cannot take this graph: {first.reason}{more}", first.where, first.fix)
    strip_traces(model)
    return model, {**facts, "opset": dict(model.opset_imports), "operators": table.name, **_open_questions(model)}


def _open_questions(model: ir.Model) -> dict[str, list[str]]:
    """What a proof of the graph by ONNX Runtime does otherwise, and what it cannot say."""
    kinds = {v.dtype for v in model.graph.initializers.values()}
    packed = any(node.op_type == "DequantizeLinear" for node in model.graph)
    found = (
        ["that TensorRT's kernels read the packed weights inside their products, and how exactly they then multiply"]
        if packed
        else []
    )
    return {"stand_in": [DECODED] if ir.DataType.FLOAT4E2M1 in kinds else [], "unproven": found}


def admit_small_floats(model: ir.Model) -> None:
    """Raise the version of the standard domain to the first that has 4-bit floats, where there are any: what else
    changed since `OPSET` is that operators take more types."""
    if any(v.dtype == ir.DataType.FLOAT4E2M1 for v in model.graph.initializers.values()):
        model.opset_imports[""] = FLOATS_OPSET
        model.ir_version = max(model.ir_version or 0, FLOATS_IR_VERSION)


def sum_in_float(model: ir.Model) -> int:
    """Running sums of integers, in place, as sums of float32, which all parsers take: exact up to 2**24, and these
    count tokens. Returns how many."""
    nodes = [
        n
        for n in model.graph
        if n.op_type == "CumSum"
        and n.inputs[0] is not None
        and n.inputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32)
    ]
    for node in nodes:
        emit, (values, axis) = Emitter(model.graph, node), node.inputs[:2]
        assert values is not None and values.dtype is not None
        rule = {name: attribute.value for name, attribute in node.attributes.items()}
        wide = emit.cast(values, values.dtype, ir.DataType.FLOAT)
        emit.replace(emit.cast(emit("CumSum", wide, axis, **rule), ir.DataType.FLOAT, values.dtype))
    return len(nodes)


def tidy(model: ir.Model) -> None:
    """Fold, drop what nobody reads, and let every value know its dtype. In place."""
    from onnx_ir.passes.common import (
        LiftConstantsToInitializersPass,
        RemoveUnusedNodesPass,
        RemoveUnusedOpsetsPass,
        ShapeInferencePass,
    )

    fold(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ShapeInferencePass()(model)
    if sum_in_float(model):
        ShapeInferencePass()(model)
