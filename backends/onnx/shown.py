"""What of a target's options an ONNX file itself shows.

A target says how closely an engine is compared: in half precision less than in float32, with activations of 8 bits less
still. Its text stands in a manifest that anybody can edit; so it counts only where the engine's graph has such numbers
and such kernels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from moec.targets.target import Target

TF32 = "moec.tf32"  # of a model's metadata: its float32 products may be made in TF32
_HALF = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def shown(file: Path, target: Target) -> Target:
    """The target without the options that would loosen a proof and that the graph does not show; reads no weights."""
    if not {"accuracy", "tf32"} & {*target.options} and target.options.get("precision") not in _HALF:
        return target
    model = ir.load(file)
    graph = model.graph
    options = dict(target.options)
    if options.get("accuracy") == "int8" and not any(_rounds(node) for node in graph.all_nodes()):
        del options["accuracy"]
    if options.get("tf32") == "true" and TF32 not in model.metadata_props:
        del options["tf32"]
    half = _HALF.get(options.get("precision", ""))
    if half is not None and not any(value.dtype == half for value in _values(graph)):
        del options["precision"]
    return replace(target, options=options)


def write_tf32(model: ir.Model, target: Target) -> None:
    """Say in a model's metadata, in place, that its target allows TF32."""
    if target.options.get("tf32") == "true":
        model.metadata_props[TF32] = "1"


def _rounds(node: ir.Node) -> bool:
    level = node.attributes.get("accuracy_level")
    return level is not None and level.as_int() == 4


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.outputs, *graph.initializers.values()]
