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

_HALF = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def shown(file: Path, target: Target) -> Target:
    """The target without the options that would loosen a proof and that the graph does not show; reads no weights."""
    if "accuracy" not in target.options and target.options.get("precision") not in _HALF:
        return target
    graph = ir.load(file).graph
    options = dict(target.options)
    if options.get("accuracy") == "int8" and not any(_rounds(node) for node in graph.all_nodes()):
        del options["accuracy"]
    half = _HALF.get(options.get("precision", ""))
    if half is not None and not any(value.dtype == half for value in _values(graph)):
        del options["precision"]
    return replace(target, options=options)


def _rounds(node: ir.Node) -> bool:
    level = node.attributes.get("accuracy_level")
    return level is not None and level.as_int() == 4


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.outputs, *graph.initializers.values()]
