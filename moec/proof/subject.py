"""What is to be proven: an engine's model and program, what it is compared with, and how closely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from moec.execution.engine import Engine
from moec.execution.streaming import StreamingEngine
from moec.frontend.source import Source
from moec.program.program import Program
from moec.proof.compare import Tolerance
from moec.proof.exam import Exam
from moec.targets.backend import Backend
from moec.targets.engine_file import EngineFile
from moec.targets.target import Target
from moec.text.corpus import Corpus

Reference = Literal["full", "streamed"]


@dataclass(frozen=True)
class Subject:
    """What a proof is about; the same for every verb that proves.

    Attributes:
        source: the untouched model.
        captured: its graph. program: what the engine was built from.
        precision: the dtype that the engine computes in.
        kernel_deviation: how far the target's kernels may be from the program, as max |d|/std, where the user chose
            inexact ones; None where they only round.
        reference: `full` for the untouched model in memory, `streamed` for the captured program with one weight in
            memory at a time. Chosen once, recorded, and used by every check.
        against: another engine to compare with, in the reference's place.
        asked: the max |d|/std that the user allows; None for the default.
        exam: a text to judge the engine on, with its budget; corpus: its tokens. Both or neither.
        seed: of the inputs.
        engine_bytes, source_bytes: of the files of both sides, for the report.
        file: of the engine, to compare what it holds by value; None where there is none.
        twin: what the engine would be built from if `source`, another model than its own, were its model.
    """

    source: Source
    captured: Program
    program: Program
    precision: torch.dtype = torch.float32
    kernel_deviation: float | None = None
    reference: Reference = "full"
    against: Engine | None = None
    asked: float | None = None
    exam: Exam | None = None
    corpus: Corpus | None = None
    seed: int = 0
    engine_bytes: int = 0
    source_bytes: int = 0
    file: EngineFile | None = None
    twin: Program | None = None

    @classmethod
    def of(cls, source: Source, captured: Program, program: Program, backend: Backend, target: Target) -> Subject:
        """The subject of a program that was built by `backend` for `target`."""
        deviation = backend.deviation(program, target)
        return cls(source, captured, program, backend.precision(target), deviation, source_bytes=source.size_bytes)

    @property
    def streamed(self) -> bool:
        """Whether each run of the reference reads all weights anew."""
        return self.reference == "streamed" and self.against is None

    def open_reference(self) -> Engine:
        """What the engine is compared with; weights are loaded, or streamed."""
        if self.against is not None:
            return self.against
        return StreamingEngine(self.captured) if self.streamed else self.source.reference()

    @property
    def tolerance(self) -> Tolerance | None:
        """What outputs may differ from the reference's; None where a text decides."""
        if self.program.approximate:
            return budget_of(self.precision, self.asked, self.exam)
        return Tolerance.of(self.precision) if self.asked is None else Tolerance(self.asked)

    @property
    def lowering_tolerance(self) -> Tolerance:
        """What outputs may differ from the program's that the engine was built from: rounding, or what inexact kernels
        were allowed."""
        exact = Tolerance.of(self.precision)
        return exact if self.kernel_deviation is None else Tolerance(self.kernel_deviation)

    @property
    def rounding(self) -> torch.dtype | None:
        """The precision by whose rounding alone the engine may differ from the reference; None where a budget of
        approximate passes decides."""
        return None if self.program.approximate else self.precision


def budget_of(precision: torch.dtype, asked: float | None, exam: Exam | None) -> Tolerance | None:
    """What all approximate passes together may change: what was asked for, else the default; None where a budget on a
    text decides in their place."""
    if asked is None and exam is not None and exam.bounded:
        return None
    return Tolerance.of(precision, approximate=True) if asked is None else Tolerance(asked)
