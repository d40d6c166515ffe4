"""Weights in small floats, for which no backend has a lowering: refused by name, with what is taken instead."""

from __future__ import annotations

import torch

from moec.engine import Refusal
from moec.program import Program


def refuse_floats(program: Program, runtime: str, accepted: str) -> list[Refusal]:
    """One refusal for each weight behind `moec::dequantize_float`.

    Args:
        runtime: its name, for the reason.
        accepted: what it takes, as options of `quantize`.
    """
    found = []
    for node in program.nodes(torch.ops.moec.dequantize_float.default):
        reason = f"moec does not lower {node.kwargs['format']} weights to {runtime}; only PyTorch runs them"
        found.append(Refusal(reason, str(node.args[0]), f"quantize with {accepted}"))
    return found
