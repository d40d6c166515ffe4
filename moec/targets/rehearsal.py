"""What a target says of a pipeline's outcome, asked before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass

from moec.pipeline.passes import Plan
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.targets.backend import Backend, Refusal
from moec.targets.target import Target


@dataclass(frozen=True)
class Rehearsal:
    """What would be done, and said, if a program were compiled for a target.

    Attributes:
        plans: of the user's passes, then of the target's own.
        refusals: the target's reasons against the outcome; empty where it takes it.
    """

    plans: tuple[Plan, ...]
    refusals: tuple[Refusal, ...]


def rehearse(captured: Program, pipeline: Pipeline, backend: Backend, target: Target) -> Rehearsal:
    """Plan a pipeline and the target's own passes, and ask the target about the program that they would make; no weight
    is read, nothing is kept.

    Raises:
        MoecError: what a pass says of its own settings.
    """
    plans = pipeline.plan(captured)
    program = plans[-1].program if plans else captured
    own = backend.legalize(target).plan(program)
    last = own[-1].program if own else program
    return Rehearsal((*plans, *own), tuple(backend.supports(last, target)))


def refused_early(captured: Program, pipeline: Pipeline, backend: Backend, target: Target) -> tuple[Refusal, ...]:
    """The refusals of a rehearsal. It is left out where no pass takes time: the answer then comes soon enough after the
    work."""
    if not any(item.quantizes or item.needs_calibration() for item in pipeline):
        return ()
    return rehearse(captured, pipeline, backend, target).refusals
