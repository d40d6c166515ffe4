"""What a target says of a pipeline's outcome, asked before any weight is read."""

from __future__ import annotations

from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.targets.backend import Backend, Refusal
from moec.targets.target import Target


def rehearse(captured: Program, pipeline: Pipeline, backend: Backend, target: Target) -> list[Refusal]:
    """The target's reasons against the program that a pipeline plans to make, the target's own passes among them;
    nothing is kept. Not asked where no pass takes time: the answer then comes soon enough after the work.

    Raises:
        MoecError: what a pass says of its own settings.
    """
    if not any(item.quantizes or item.needs_calibration() for item in pipeline):
        return []
    program = pipeline.plan(captured)[-1].program
    legal = backend.legalize(target).plan(program)
    return backend.supports(legal[-1].program if legal else program, target)
