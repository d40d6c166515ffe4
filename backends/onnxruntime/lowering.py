"""From a Program to the ONNX graph that ONNX Runtime runs, as named steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir

from moec.backends.onnx.causal_conv import lower_causal_convs
from moec.backends.onnx.evaluation import stages_of
from moec.backends.onnx.selective_scan import lower_selective_scans
from moec.backends.onnx.sessions import Providers
from moec.backends.onnx.shown import write_tf32
from moec.backends.onnx.steps import Step, apply_steps
from moec.backends.onnxruntime.attention.linear import lower_linear_attention
from moec.backends.onnxruntime.attention.lower import lower_attention
from moec.backends.onnxruntime.attention.windows import compact_windows
from moec.backends.onnxruntime.experts.lower import lower_experts
from moec.backends.onnxruntime.export import to_onnx
from moec.backends.onnxruntime.optimization.last_logits import cut_logits
from moec.backends.onnxruntime.optimization.optimize import optimization
from moec.backends.onnxruntime.packed.quantized import lower_quantized, set_accuracy
from moec.backends.onnxruntime.packed.unpacking import unpack_products, unpacked
from moec.backends.onnxruntime.session.own_kernels import register
from moec.execution.engine import Engine
from moec.kernels.cpu.library import uses_own_kernels
from moec.program.program import Program
from moec.progress import Progress
from moec.targets.target import Target


def steps_for(target: Target, optimize_for: str = "latency", windows: Sequence[int | None] = ()) -> list[Step]:
    """The steps for a target, in order. Facts: `attention`, `linear_attention`, `convolutions`, `blocks`, `packed`, and
    `unpacked`, how many products.

    `windows`: see `compact_windows`.
    """
    provider, rounded = target.device or "cpu", target.options.get("accuracy") == "int8"
    unpacking = provider == "cpu" and not rounded
    return [
        Step("lower-attention", lower_attention, provider, windows, facts="attention"),
        Step("lower-linear-attention", lower_linear_attention, facts="linear_attention"),
        Step("lower-selective-scans", lower_selective_scans, facts="selective_scans"),
        Step("lower-convolutions", lower_causal_convs, facts="convolutions"),
        Step(
            "lower-experts",
            lower_experts,
            optimize_for,
            provider,
            rounded,
            uses_own_kernels(target.options),
            facts="blocks",
        ),
        Step("lower-quantized", lower_quantized, facts="packed"),
        Step("set-accuracy", set_accuracy, 4 if rounded else 0),
        *optimization(optimize_for, provider),
        Step("cut-logits", cut_logits),
        *([Step("unpack-products", unpack_products, facts="unpacked")] if unpacking else []),
    ]


def lowered(
    program: Program, target: Target, optimize_for: str = "latency", progress: Progress | None = None
) -> tuple[ir.Model, dict[str, Any]]:
    """The ONNX model in memory, weights lazy, and the facts about it: `blocks`, `attention`, `packed`, `opset`."""
    model = to_onnx(program, target.device or "cpu", uses_own_kernels(target.options))
    facts = apply_steps(model, steps_for(target, optimize_for, compact_windows(program, target)), progress)
    write_tf32(model, target)
    if facts.pop("unpacked", 0):
        facts |= {"blocks": unpacked(facts["blocks"], "kernel"), "packed": unpacked(facts["packed"], "op")}
    return model, {**facts, "opset": dict(model.opset_imports)}


def stages(program: Program, target: Target, optimize_for: str, providers: Providers) -> Iterator[tuple[str, Engine]]:
    """See `Backend.stages`."""
    model = to_onnx(program, target.device or "cpu", uses_own_kernels(target.options))
    steps = steps_for(target, optimize_for, compact_windows(program, target))
    yield from stages_of(
        model, steps, program.inputs, providers, register=register if uses_own_kernels(target.options) else None
    )
