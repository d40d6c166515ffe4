"""How to compile: every setting of a compilation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.pipeline import Pipeline
from moec.proof.exam import Exam
from moec.targets.target import Target

Verify = Literal["auto", "full", "streamed"]


@dataclass(frozen=True)
class Options:
    """How to compile.

    Attributes:
        target: where the engine is to run.
        pipeline: passes that the user named; the target's own follow them.
        optimize_for: `latency` (few tokens a call) or `throughput` (many).
        verify: `full` compares with the untouched model in memory; `streamed` with the captured graph, one weight in
            memory at a time, for models that do not fit; `auto` decides by size.
        tolerance: bound of max|d|/std(reference); the dtype's default when None. An approximate pass's budget.
        seed: for everything random.
        save_hf: folder of a checkpoint to write after the named passes, see `moec.huggingface.saving.save`.
        inputs: `name=dims:dtype` texts that the source was opened with; recorded so that the manifest can rebuild the
            engine.
        cache: whether a decoder was opened with its cache of keys and values; recorded too.
        layout: of the engine folder, see `moec.layouts`; what suits the model when None.
        exam: a text to judge the engine on, with the error budget. One that is set stands in the place of the
            approximate passes' default budget in max|d|/std.
        build: False leaves the part that needs the target's own runtime to `moec build`; the proof is then its
            stand-in's.
        calibration: a text for the passes that need data.
    """

    target: Target
    pipeline: Pipeline = field(default_factory=Pipeline)
    optimize_for: str = "latency"
    verify: Verify = "auto"
    tolerance: float | None = None
    seed: int = 0
    save_hf: Path | None = None
    inputs: tuple[str, ...] = ()
    cache: bool = True
    layout: str | None = None
    exam: Exam | None = None
    build: bool = True
    calibration: CalibrationText | None = None
