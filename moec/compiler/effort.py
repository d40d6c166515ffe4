"""What a compilation takes of a machine, from the program that it plans: disk for the engine, memory for the work, and
about how long."""

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
from moec.planning.formats import FORMATS, Format, stored_bytes

BF16 = FORMATS["bf16"]  # as most checkpoints are stored
START, PACE = (10.0, 240.0), (4e8, 3e7)  # seconds for a model without weights; bytes a second


@dataclass(frozen=True)
class Effort:
    """What compiling takes.

    Attributes:
        disk_bytes: of the weights in the engine.
        least_ram_bytes: with which `moec compile --max-ram` still does it: weights are read piece by piece.
        full_ram_bytes: with which the proof runs the untouched model in memory, which is faster.
        seconds: at the least, on a core of its own without a proof; and at the most, on cores that others use too and
            with a proof (`seconds_of`).
    """

    disk_bytes: int
    least_ram_bytes: int
    full_ram_bytes: int
    seconds: tuple[float, float]


def seconds_of(read: float, written: float) -> tuple[float, float]:
    """How long a compilation takes that reads and writes so many bytes of weights: between what it computes on a core
    of its own without a proof, and what it took on cores that others wanted too, some with a proof
    (benchmarks/big_model.py, huge_model.py). Passes that fit to texts take longer."""
    low, high = (start + (read + written) / pace for start, pace in zip(START, PACE, strict=True))
    return low, high


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
    engine, stored = (
        sum(stored_bytes(*each).values()) for each in ((made.tensors, plain), (paper.shape.tensors, BF16))
    )
    return Effort(engine, least, full_bytes(least, paper.source, weights), seconds_of(stored, engine))
