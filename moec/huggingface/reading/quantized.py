"""Checkpoints that are quantized already: which of them moec reads, and how their weights stay packed in the captured
graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx

from moec import registry
from moec.errors import MoecError
from moec.files.inside import read_inside
from moec.huggingface.checkpoint_format import CheckpointFormat
from moec.huggingface.formats.modelopt import FILE, METHOD
from moec.huggingface.reading.checkpoint import Checkpoint
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.recognition.weight_roles import PACKED
from moec.weights.weight import PackedWeight, Weight

Decode = Callable[[Mapping[str, Weight]], dict[str, Weight]]
_WAY_OUT = "use the unquantized checkpoint and let moec quantize it, or one in compressed-tensors form (pack-quantized)"
BY = "the checkpoint"


def decoder_of(config: Mapping[str, Any], folder: Path) -> Decode | None:
    """What decodes the tensors of a folder with this config.json; None for one that is not quantized.

    Raises:
        MoecError: M206 for a format that moec does not read, by its name and with the reason.
    """
    given, file = config.get("quantization_config"), folder / "config.json"
    if not given:
        given, file = _beside(folder), folder / FILE
    if not given or _rounds_caches_alone(given):
        return None
    method = str(given.get("quant_method", "an unnamed method"))
    known: list[CheckpointFormat] = [registry.find("formats", name)() for name in registry.names("formats")]
    chosen = next((form for form in known if method in form.methods), None)
    others = f"moec reads {', '.join(sorted(m for f in known for m in f.methods))}"
    reason = _why_not(chosen, given) if chosen else others
    if chosen is None or reason:
        raise MoecError("M206", f"the checkpoint is quantized already ({method}): {reason}", str(file), _WAY_OUT)
    return partial(chosen.decode, config=given)


def _beside(folder: Path) -> dict[str, Any] | None:
    """What older files of ModelOpt's form say in a file of their own, and not in config.json."""
    if not (folder / FILE).is_file():
        return None
    try:
        found = json.loads(read_inside(folder / FILE, folder))
    except (OSError, ValueError, RecursionError) as error:
        raise MoecError(
            "M204", f"it is not readable: {error}", str(folder / FILE), "download the file again"
        ) from error
    return {"quant_method": METHOD, **found} if isinstance(found, dict) else None


def _rounds_caches_alone(given: Mapping[str, Any]) -> bool:
    """Whether an entry in ModelOpt's form names a format of caches, as servers may keep them, and none of weights."""
    inside = given.get("quantization", given)
    named = isinstance(inside, dict) and any(inside.get(n) for n in ("quant_algo", "quantized_layers", "config_groups"))
    return given.get("quant_method") == METHOD and isinstance(inside, dict) and not named


def _why_not(form: CheckpointFormat, given: Mapping[str, Any]) -> str:
    """A format's reason; its own error where an entry is of another kind than all of its writers write."""
    try:
        return form.why_not(given)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        return f"its quantization_config has an entry that is none of this method: {error}"


def decode(checkpoint: Checkpoint, decoder: Decode | None) -> Checkpoint:
    """The checkpoint with plain names and lazily decoded weights."""
    return (
        checkpoint
        if decoder is None
        else replace(checkpoint, weights=decoder(checkpoint.weights), stored_bytes=checkpoint.size_bytes)
    )


def keep_packed(program: Program) -> int:
    """Let `moec::dequantize` stand for every weight of the program that is decoded from codes; returns how many there
    are.

    Raises:
        MoecError: M206 when a layout of the model mixes codes with each other, so that they would have to be made anew.
    """
    made: dict[int, fx.Node] = {}
    for node in [n for n in program.graph.nodes if n.op == "get_attr"]:
        weight = program.weights[str(node.target)]
        if not isinstance(weight.coded, PackedWeight):
            _refuse_lost(str(node.target), weight)
            continue
        if id(weight) not in made:
            made[id(weight)] = _dequantize(program, node, weight.coded)
        node.replace_all_uses_with(made[id(weight)])
    program.finish()
    return len(made)


def _dequantize(program: Program, node: fx.Node, coded: PackedWeight) -> fx.Node:
    reader = next(iter(node.users))
    names = [str(node.target) + ending for ending in (PACKED, "_scale", "_zero_point")]
    with program.graph.inserting_before(node):
        arguments = [
            program.read_weight(program.add_weight(n, part)) for n, part in zip(names, coded.parts(), strict=False)
        ]
        return call_like(program, reader, BY, torch.ops.moec.dequantize.default, *arguments, bits=coded.bits)


def _refuse_lost(name: str, weight: Weight) -> None:
    if any(part.coded is not None for part in weight.expression()):
        what = f"the quantized weights of {name!r} lie in another layout than the model computes with"
        raise MoecError("M206", what, weight.origin[:200], _WAY_OUT)
