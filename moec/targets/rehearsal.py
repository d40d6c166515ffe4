"""What a target says of a pipeline's outcome, asked before any weight is read."""

from __future__ import annotations

from dataclasses import replace

from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.targets.backend import Backend, Refusal
from moec.targets.target import Target


def rehearse(captured: Program, pipeline: Pipeline, backend: Backend, target: Target) -> list[Refusal]:
    """The target's reasons against the program that a pipeline is going to make, as far as its passes' outlines tell;
    nothing is kept.

    Passes that need a calibration text and have no outline are left out: they choose among what is there, and change no
    form.

    Raises:
        MoecError: what a pass says of its own settings.
    """
    outlines = [(item, item.outline()) for item in pipeline]
    if not any(outline for _, outline in outlines):
        return []
    passes = tuple(outline or item for item, outline in outlines if outline or not item.needs_calibration())
    program, _ = replace(pipeline, passes=passes).run(captured, Context())
    legal, _ = backend.legalize(target).run(program, Context())
    return backend.supports(legal, target)
