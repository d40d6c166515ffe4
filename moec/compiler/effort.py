"""What a compilation takes of a machine, from the program that it plans: disk for the engine, memory for the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moec.compiler.memory_limit import RUNTIME_BYTES, full_bytes, streamed_bytes
from moec.compiler.options import Options
from moec.compiler.rehearsals import Rehearsals
from moec.compiler.reshaped import reshaped
from moec.execution.memory import own_bytes
from moec.pipeline.passes import Plan
from moec.planning.formats import Format, stored_bytes


@dataclass(frozen=True)
class Effort:
    """What compiling takes.

    Attributes:
        disk_bytes: of the weights in the engine.
        least_ram_bytes: with which `moec compile --max-ram` still does it: weights are read piece by piece.
        full_ram_bytes: with which the proof runs the untouched model in memory, which is faster.
    """

    disk_bytes: int
    least_ram_bytes: int
    full_ram_bytes: int


def effort(paper: Rehearsals, dtype: torch.dtype, plans: Sequence[Plan], options: Options) -> Effort:
    """What a rehearsed compilation would take; the figures of memory are those by which `--max-ram` decides.

    Args:
        paper: the model. dtype: in which the target keeps what is not packed.
        plans: of the user's passes and of the target's own.
        options: with the pipeline.
    """
    captured = paper.captured(dtype)
    plain = Format("plain", dtype.itemsize * 8, plain=dtype.itemsize * 8)
    made = reshaped(paper.shape, captured, plans, paper.source.stands_for)
    least = own_bytes() + RUNTIME_BYTES + streamed_bytes(captured, options)
    weights = sum(stored_bytes(paper.shape.tensors, plain).values())
    return Effort(sum(stored_bytes(made.tensors, plain).values()), least, full_bytes(least, paper.source, weights))
