"""What a program assumes of its inputs, in the metadata of its ONNX file: whoever has the file alone has it, too."""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx_ir as ir

from moec.errors import MoecError
from moec.program.conditions import Assumptions

ASSUMED = "moec.assumptions"


def write_assumptions(model: ir.Model, assumptions: Assumptions) -> None:
    """Put them into a model's metadata, in place; nothing where a program assumes nothing."""
    if assumptions != Assumptions():
        model.metadata_props[ASSUMED] = json.dumps(assumptions.to_plain())


def read_assumptions(metadata: Mapping[str, str], where: str) -> Assumptions:
    """What a model's metadata says; nothing where it says nothing. Raises M106 for what is not of this form."""
    if ASSUMED not in metadata:
        return Assumptions()
    try:
        return Assumptions.of_plain(json.loads(metadata[ASSUMED]))
    except (ValueError, RecursionError) as error:
        raise MoecError("M106", f"the file's {ASSUMED} cannot be read: {error}", where, "compile it again") from error
