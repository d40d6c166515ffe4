"""What a compilation would do: which passes would fire, what they would leave alone, whether each target takes it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moec import registry
from moec.compiler.effort import Effort, effort
from moec.compiler.options import Options
from moec.compiler.rehearsals import Rehearsals
from moec.errors import MoecError
from moec.pipeline.passes import Plan
from moec.pipeline.pipeline import Pipeline
from moec.targets.backend import Backend, Refusal
from moec.targets.rehearsal import rehearse
from moec.targets.target import Target


@dataclass(frozen=True)
class Step:
    """What a pass would do.

    Attributes:
        name: the pass with its options.
        rewrites: how many, `3` or `0 to 3` where data decides.
        misses: what it would leave alone, and why.
    """

    name: str
    rewrites: str
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Foreseen:
    """What compiling for one target would come to.

    Attributes:
        target: as it was asked for.
        model: what was looked at: a deep model is cut to the layers that hold every kind of layer.
        steps: the user's passes, then the target's own.
        refusals: why it would be refused, each with its way out; empty when it would be built.
        command: what to type.
        effort: what that takes of the machine; None where it is refused.
    """

    target: str
    model: str
    steps: tuple[Step, ...]
    refusals: tuple[tuple[str, str], ...]
    command: str
    effort: Effort | None = None


def foresee(
    model: str | Path | Rehearsals,
    pipeline: str | Pipeline = "",
    targets: Sequence[str] = ("onnxruntime",),
    said: str = "",
) -> list[Foreseen]:
    """Rehearse a compilation for every target; no weight is read, and no runtime has to be installed.

    Args:
        model: a config.json, a folder that holds one, or a hub id in the local cache; or what was captured of one.
        pipeline: passes, as for `moec compile`.
        targets: as for `moec compile`.
        said: how a command says these passes, where it is not `--pass`: `--config int4`.

    Raises:
        MoecError: M201 for a model without a config, M202 for an unknown target or pass; what the model's own reading
            says. What a target says against the model is in the answer.
    """
    paper = model if isinstance(model, Rehearsals) else Rehearsals(model)
    passes = Pipeline.parse(pipeline) if isinstance(pipeline, str) else pipeline
    said = said or (f"--pass {shlex.quote(str(passes))}" if list(passes) else "")
    return [_for_target(paper, passes, Target.parse(text), said) for text in targets]


def _for_target(paper: Rehearsals, pipeline: Pipeline, target: Target, said: str) -> Foreseen:
    backend: Backend = registry.find("backends", target.backend)()
    text, refused = _opened(paper)
    refused = refused or backend.options(target)
    steps: list[Step] = []
    taken: Effort | None = None
    if not refused:
        try:
            found = rehearse(paper.captured(backend.precision(target)), pipeline, backend, target)
        except MoecError as error:
            refused = [Refusal(error.what, error.where, error.fix)]
        else:
            steps, refused = [_step(plan) for plan in found.plans], list(found.refusals)
            options = Options(target=target, pipeline=pipeline)
            taken = None if refused else effort(paper, backend.precision(target), found.plans, options)
    words = ["moec compile", shlex.quote(paper.model), "--target", shlex.quote(str(target)), said, "-o engine/"]
    reasons = tuple((f"{r.reason} ({r.where})", r.fix) for r in refused)
    return Foreseen(str(target), text, tuple(steps), reasons, " ".join(filter(None, words)), taken)


def _opened(paper: Rehearsals) -> tuple[str, list[Refusal]]:
    """How the model is named, and why it cannot be opened: one that is counted on paper may be none that moec opens."""
    try:
        return paper.source.text, []
    except MoecError as error:
        if error.code not in ("M206", "M209", "M215"):
            raise
        return paper.model, [Refusal(error.what, error.where, error.fix)]


def _step(plan: Plan) -> Step:
    most = "an unknown number" if plan.most is None else str(plan.most)
    rewrites = str(plan.least) if plan.most == plan.least else f"{plan.least} to {most}"
    return Step(plan.name, rewrites, tuple(f"{m.node}: {m.reason}" for m in plan.misses))
