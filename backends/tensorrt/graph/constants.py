"""The constants of the ONNX file that a plan is built from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import msgspec
import onnx_ir as ir

from moec.backends.onnx.constants import constants_of
from moec.backends.tensorrt.graph.export import lowered
from moec.backends.tensorrt.policy import BuildPlan
from moec.errors import MoecError
from moec.program.program import Program
from moec.targets.backend import Constant


def lowered_constants(
    program: Program, described: Path, kept: tuple[Program, ir.Model] | None = None
) -> Iterable[Constant]:
    """What the file must hold for a program, lowered once more as it was; the choice of a lowering hangs on the machine
    that wrote the file, so its plan stands beside it.

    Args:
        program: what the file was written from.
        described: the file that holds the plan.
        kept: a program and its lowered graph, which is taken where it is this program.

    Raises:
        MoecError: M106 when the plan cannot be read from `described`.
    """
    if kept and kept[0] is program:
        return constants_of(kept[1])
    try:
        plan = msgspec.convert(json.loads(described.read_text())["plan"], BuildPlan)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"how the graph was written cannot be read: {type(error).__name__}"
        raise MoecError("M106", what, str(described), "compile the engine again") from error
    return constants_of(lowered(program, plan)[0])
