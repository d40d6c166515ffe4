"""How many windows of a text run together, so that what attention holds for them fits into memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.memory import available_bytes, total_bytes
from moec.program.program import Program

_HELD = 4  # times the scores: those, masked ones, their softmax; 2 to 3 were measured
_SCORE_BYTES = 4  # float32, whatever the model's dtype is
_ATTENTION = torch.ops.moec.attention.default


def windows_at_once(program: Program, window: int, most: int) -> int:
    """How many windows fit into half of the memory that is free, `most` at most.

    Args:
        program: the model. window: tokens of each. Attention holds a score for each pair of them, in each head.

    Raises:
        MoecError: M201 where a single one does not fit.
    """
    a_pair = _HELD * _SCORE_BYTES * _heads(program)
    room = min(total_bytes(), available_bytes()) // 2
    found = room // (a_pair * window**2)
    if not found:
        what = f"a window of {window:,} tokens needs more memory than there is free: it grows with their square"
        raise MoecError("M201", what, f"--window {window}", f"--window {max(2, math.isqrt(room // a_pair))}")
    return min(found, most)


def _heads(program: Program) -> int:
    """The most heads whose scores any operator holds; 1 where none has scores."""
    found = 1
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.target is _ATTENTION:
            found = max(found, int(node.args[0].meta["val"].shape[1]))  # type: ignore[union-attr]
        elif isinstance(value, Tensor) and not any(isinstance(size, int) for size in value.shape[-2:]):
            found = max(found, math.prod(size for size in value.shape[:-2] if isinstance(size, int)))
    return found
