"""From a Program to the ONNX file that TensorRT's parser reads: standard operators only, checked against the parser's
table before it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from moec.backends.onnx.assumed import write_assumptions
from moec.backends.onnx.causal_conv import lower_causal_convs
from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.evaluation import stages_of
from moec.backends.onnx.export import strip_traces, to_onnx
from moec.backends.onnx.folding import folding, remove_unused
from moec.backends.onnx.selective_scan import lower_selective_scans
from moec.backends.onnx.steps import Step, apply_steps
from moec.backends.onnx.writing import write_model
from moec.backends.tensorrt.graph.attention import lower_attention
from moec.backends.tensorrt.graph.fixed_cache import fix_cache
from moec.backends.tensorrt.graph.linear_attention import lower_linear_attention
from moec.backends.tensorrt.graph.moe import lower_experts
from moec.backends.tensorrt.graph.operators import check, table_of
from moec.backends.tensorrt.graph.quantized import lower_quantized
from moec.backends.tensorrt.graph.small_floats import OPSET as FLOATS_OPSET
from moec.backends.tensorrt.policy import BuildPlan
from moec.backends.tensorrt.session.cpu_stand_in import DECODED, decode
from moec.backends.tensorrt.session.grown_cache import grow
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.conditions import Condition
from moec.program.program import Program
from moec.progress import Progress

# packed weights need it; from 23 on torch.onnx writes `Attention`, which TensorRT builds only where it has a fused
# kernel
OPSET = 21
FLOATS_IR_VERSION = 11  # of the file format, for the same floats


def write_onnx(
    program: Program, path: Path, precision: torch.dtype, plan: BuildPlan, progress: Progress | None = None
) -> tuple[ir.Model, dict[str, Any]]:
    """Write `path` and, beside it, `<path>.data` with the weights, one block in memory at a time.

    Args:
        program: legalized, its floating-point weights in `precision`.
        path: of the ONNX file.
        precision: what the engine computes in; routers compute in float32 whatever it is.
        plan: what the engine is for, see `policy`.

    Returns:
        The model, and facts: `blocks` (one a MoE block: the lowering that it got and why, the bound of its memory in
            bytes), `attention`, `packed`, `opset`,
        `precision`, `operators`, the table that the graph was checked against, `stand_in`, what ONNX Runtime computes
            otherwise, and `unproven`,
        what its proof leaves open.

    Raises:
        MoecError: M208 when torch.onnx has no translation for an operator, the policy refuses a block, or the parser
            would refuse a node.
    """
    model, facts = lowered(program, plan, progress)
    write_model(model, path, progress)
    return model, {**facts, "precision": str(precision).removeprefix("torch.")}


def steps_for(plan: BuildPlan, program: Program) -> list[Step]:
    """The steps, in order. Facts: `cache`, `attention`, `blocks`, `packed`."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

    fixed = [Step("fix-cache", fix_cache, program.inputs, program.conditions, plan.capacity, facts="cache")]
    return [
        *(fixed if plan.capacity else ()),
        Step("lower-attention", lower_attention, facts="attention"),
        Step("lower-linear-attention", lower_linear_attention, facts="linear_attention"),
        Step("lower-selective-scans", lower_selective_scans, facts="selective_scans"),
        Step("lower-convolutions", lower_causal_convs, False, facts="convolutions"),
        Step("lower-experts", lower_experts, plan, facts="blocks"),
        Step("lower-quantized", lower_quantized, facts="packed"),
        Step("admit-small-floats", admit_small_floats),
        *folding(),
        Step("remove-unused", remove_unused),
        Step("lift-constants", LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)),
        Step("infer-shapes", ShapeInferencePass()),  # the table asks for every value's dtype
        Step("sum-in-float", sum_in_float),
        Step("infer-shapes-of-sums", ShapeInferencePass()),
    ]


def lowered(program: Program, plan: BuildPlan, progress: Progress | None = None) -> tuple[ir.Model, dict[str, Any]]:
    """The ONNX model of standard operators in memory, weights lazy, and the facts about it; raises as `write_onnx`
    does."""
    model = to_onnx(program, OPSET)
    facts = apply_steps(model, steps_for(plan, program), progress)
    table = table_of(plan.edition, plan.version)
    violations = check(model, table)
    if violations:
        first, more = violations[0], f"; {len(violations) - 1} more" if len(violations) > 1 else ""
        raise MoecError("M208", f"{table.title} cannot take this graph: {first.reason}{more}", first.where, first.fix)
    strip_traces(model)
    write_assumptions(model, program.assumptions)
    return model, {
        **facts,
        "opset": dict(model.opset_imports),
        "operators": table.name,
        **_open_questions(model, facts.get("blocks", ())),
    }


def stages(program: Program, plan: BuildPlan) -> Iterator[tuple[str, Engine]]:
    """See `Backend.stages`; ONNX Runtime's CPU runs the graphs, those with a fixed cache as `cpu_stand_in` does."""
    yield from stages_of(to_onnx(program, OPSET), steps_for(plan, program), program.inputs, prepare=_prepare)


def _prepare(model: ir.Model) -> Condition | None:
    decode(model)
    return grow(model)


def _open_questions(model: ir.Model, blocks: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What a proof of the graph by ONNX Runtime does otherwise, and what it cannot say."""
    kinds = {v.dtype for v in model.graph.initializers.values()}
    packed = any(node.op_type == "DequantizeLinear" for node in model.graph)
    found = (
        ["that TensorRT's kernels read the packed weights inside their products, and how exactly they then multiply"]
        if packed
        else []
    )
    inside = {"kernels": "moec's own kernels", "native": "TensorRT's own layers"}
    found += [
        f"that {what} compute in the plan what the graph's standard operators do"
        for name, what in inside.items()
        if any(block.get("formulation") == name for block in blocks)
    ]
    return {"stand_in": [DECODED] if ir.DataType.FLOAT4E2M1 in kinds else [], "unproven": found}


def admit_small_floats(model: ir.Model) -> None:
    """Raise the version of the standard domain to the first that has 4-bit floats, where there are any: what else
    changed since `OPSET` is that operators take more types."""
    if any(v.dtype == ir.DataType.FLOAT4E2M1 for v in model.graph.initializers.values()):
        model.opset_imports[""] = max(FLOATS_OPSET, model.opset_imports[""])
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
