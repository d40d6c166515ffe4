"""What is to be proven: an engine's model and program, what it is compared with, and how closely."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch

from moec.execution.engine import Engine
from moec.execution.streaming import StreamingEngine
from moec.frontend.source import Source
from moec.program.program import Program
from moec.proof.compare import Tolerance
from moec.proof.exam import Exam
from moec.proof.own_text import OwnText, is_language_model
from moec.proof.recorded_bound import RecordedBound
from moec.targets.backend import Backend
from moec.targets.engine_file import EngineFile
from moec.targets.target import Target
from moec.text.corpus import Corpus

Reference = Literal["full", "streamed"]
Yardstick = Literal["outputs", "text", "own text"]


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
        max_kl: the mean KL divergence that the user allows on the model's own text, in nats a token; None for the
            default.
        own_text: the model's own text, where it is written already; it has to fit the engine.
        exam: a text to judge the engine on, with its budget; corpus: its tokens. Both or neither.
        exam_decides: whether a budget on the text takes the default's place.
        tighter: another bound on max |d|/std, beside whatever else decides; looser: bounds that a manifest records and
            that are not used, see `moec.proof.checks.bounds`.
        target, ran_on: where the engine is to run, and what runs it for the proof, as texts; empty where nobody says.
        seed: of the inputs.
        engine_bytes, source_bytes: of the files of both sides, for the report.
        file: of the engine, to compare what it holds by value; None where there is none.
        fitted_elsewhere: in words, what was another one when passes fitted numbers to a text, so that a proof may find
            others; empty where nothing was.
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
    max_kl: float | None = None
    own_text: OwnText | None = None
    exam: Exam | None = None
    corpus: Corpus | None = None
    exam_decides: bool = True
    tighter: float | None = None
    looser: tuple[RecordedBound, ...] = ()
    target: str = ""
    ran_on: str = ""
    seed: int = 0
    engine_bytes: int = 0
    source_bytes: int = 0
    file: EngineFile | None = None
    twin: Program | None = None
    fitted_elsewhere: str = ""

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

    @cached_property
    def judged_by(self) -> Yardstick:
        """What decides how much may differ: outputs, for exact passes, where the user bounds them, and for approximate
        passes on what is no language model; a text with a budget; else the model's own text."""
        if not self.program.approximate:
            return "outputs"
        return yardstick(self.program, self.asked, self.exam if self.exam_decides else None)

    @property
    def tolerance(self) -> Tolerance | None:
        """What outputs may differ from the reference's; None where a text decides."""
        if self.judged_by != "outputs":
            return None if self.tighter is None else Tolerance(self.tighter)
        if self.asked is not None:
            return Tolerance(self.asked)
        own = Tolerance.of(self.precision)
        if self.program.approximate:
            own = Tolerance.of_passes(self.program.history)
        elif self.kernel_deviation is not None:
            own = replace(own, deviation=max(own.deviation, self.kernel_deviation))
        return own if self.tighter is None else replace(own, deviation=min(own.deviation, self.tighter))

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


def yardstick(program: Program, asked: float | None, exam: Exam | None) -> Yardstick:
    """By what approximate passes on a program are judged, all of them together; see `Subject.judged_by`."""
    if asked is not None:
        return "outputs"
    if exam is not None and exam.bounded:
        return "text"
    return "own text" if is_language_model(program) else "outputs"
