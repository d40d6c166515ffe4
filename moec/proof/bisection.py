"""Where an engine departs from the untouched model: the first pass, then the first layer, then the expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.streaming import StreamingEngine
from moec.program.program import Program
from moec.program.signature import Sample
from moec.proof.blamed_experts import blame, chosen_experts, wrong_tokens
from moec.proof.compare import Tolerance, compare
from moec.proof.decided_tokens import ComparedTokens
from moec.proof.first_layer import (
    Values,
    engine_values,
    everything_in,
    first_layer,
    module_outputs,
    outputs_of,
    rows_of_tokens,
)
from moec.shown import figure_of

LOWERING = "the backend's lowering"  # of a backend that doesn't show its steps
RUNTIME = "the engine as it runs"  # where all steps of the lowering are right, its files or its runtime are wrong


@dataclass(frozen=True)
class Stage:
    """One step of the compile: `capture`, a pass, a step of the lowering, or the engine.

    Attributes:
        name: the step's.
        deviation: how far it is from the untouched model, as max |d|/std; None when it was not compared.
        ok: whether that is within the tolerance; True when it was not compared.
        why_not: why it was not compared, or what of it is not acceptable where more than the deviation decides.
        allowed: the deviation that is; None where a text decides, or `figures` does.
        figures: what decides beside what is allowed, in words, where that is not the largest deviation.
    """

    name: str
    deviation: float | None
    ok: bool
    why_not: str = ""
    allowed: float | None = None
    figures: str = ""

    def __str__(self) -> str:
        why = f": {self.why_not}" if self.why_not else ""
        if self.deviation is None:
            return f"{'not compared':<27}{self.name}{why}"
        bound = "a text decides" if self.allowed is None else f"{figure_of(self.allowed)} allowed"
        figures = self.figures or f"{self.deviation:.1e}, {bound}"
        return f"{'ok   ' if self.ok else 'WRONG'} {figures:<21}  {self.name}{why}"


@dataclass(frozen=True)
class Divergence:
    """Where the numbers go wrong.

    Attributes:
        stages: every step in order. stage: the first that diverges, empty when none does.
        layer: dotted name of the first module whose output diverges there; empty when nothing inside could be compared.
        layer_deviation: by how much, as max |d|/std.
        experts: those that all wrong tokens of the layer went to; empty without experts in it.
        wrong_tokens, tokens: of the layer, where it has experts.
        proof: what the proof of the same engine failed at, in words; empty where it holds, None where nobody said.
    """

    stages: tuple[Stage, ...]
    stage: str = ""
    layer: str = ""
    layer_deviation: float = 0.0
    experts: tuple[int, ...] = ()
    wrong_tokens: int = 0
    tokens: int = 0
    proof: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"  {stage}" for stage in self.stages]
        if not self.stage and self.proof:
            said = "no step diverges on the inputs of a bisection; the proof fails all the same"
            return "\n".join([f"{said}: {self.proof}", *lines])
        if not self.stage:
            return "\n".join(["nothing diverges", *lines])
        if self.proof == "":
            lines.insert(0, "the engine is within its bounds as a whole; one of its steps alone is not:")
        layer = (
            f"{self.layer} (max |d|/std {self.layer_deviation:.2g})"
            if self.layer
            else "not found: no value inside could be matched"
        )
        lines = [f"first pass:  {self.stage}", *lines, f"first layer: {layer}"]
        if self.tokens:
            which = (
                f"{', '.join(map(str, self.experts))}: all wrong tokens went there"
                if self.experts
                else "none in particular"
            )
            lines.append(f"expert:      {which} ({self.wrong_tokens} of {self.tokens} tokens wrong)")
        return "\n".join(lines)


@dataclass(frozen=True)
class Bounds:
    """What the steps of a making may change.

    Attributes:
        exact: an exact pass, beside the step before it.
        budget: all approximate passes together, beside the reference; None where a text decides, and outputs only have
            to be numbers.
        lowering: after approximate passes, what a backend made of the last program, beside that program; `exact`, and
            beside the reference, when None.
        judge: what is not acceptable of the program after an approximate pass, where more than outputs decides; empty
            when nothing is.
    """

    exact: Tolerance
    budget: Tolerance | None = None
    lowering: Tolerance | None = None
    judge: Callable[[Program], str] | None = None


def bisect(
    reference: Engine,
    programs: Sequence[tuple[str, Program]],
    samples: Sequence[Sample],
    bounds: Bounds,
    engine: Engine | None = None,
    compared: Sequence[ComparedTokens | None] | None = None,
    lowering: Iterable[tuple[str, Engine]] = (),
) -> Divergence:
    """Find the first step that departs from the reference, and where in it.

    Args:
        reference: the untouched model. When it has a `module`, a wrong capture can be bisected to a layer.
        programs: the program after each step and the step's name, the captured one first
            (`moec.pipeline.hooks.RecordHook`).
        samples: inputs on which the error shows.
        bounds: what may differ.
        engine: what was built from the last program. When it has a method
            `intermediates(inputs)` that returns all values inside by name, it can be bisected to a layer too.
        compared: what of each sample can be compared (`moec.proof.decided_tokens`); all of it by default.
        lowering: the steps that the backend took from the last program to the engine, see `Backend.stages`; asked for
            one by one, where the engine is wrong and all programs are right.
    """
    stages: list[Stage] = []
    for k, (name, program) in enumerate(programs):
        rough = bool(k and program.history and program.history[-1].contract == "approximate")
        # an exact pass has to equal the program before it: that may differ from the reference by a budget
        base = StreamingEngine(programs[k - 1][1]) if k and not rough else reference
        allowed = bounds.budget if rough else bounds.exact
        stage = _stage(name, base, StreamingEngine(program), samples, allowed, compared)
        why = bounds.judge(program) if rough and bounds.judge else ""
        stages.append(replace(stage, ok=False, why_not=why) if why else stage)
        if not stages[-1].ok:
            sample, part = _worst(base, StreamingEngine(program), samples, allowed, compared)
            good = outputs_of(programs[k - 1][1], sample) if k else module_outputs(reference, sample)
            inner = allowed or bounds.exact
            return _inside(tuple(stages), good, everything_in(program, sample), program, sample, inner, part)
    if engine is None:
        return Divergence(tuple(stages))
    tolerance = bounds.exact
    if bounds.lowering is not None:
        reference, tolerance = StreamingEngine(programs[-1][1]), bounds.lowering
    last = _stage(LOWERING, reference, engine, samples, tolerance, compared)
    if last.ok:
        return Divergence((*stages, last))
    culprit, before = engine, len(stages)
    for name, candidate in lowering:
        stages.append(_graph_stage(name, reference, candidate, samples, tolerance, compared))
        if not stages[-1].ok:
            culprit = candidate
            break
        candidate.close()
    else:
        stages.append(replace(last, name=LOWERING if len(stages) == before else RUNTIME))
    program, (sample, part) = programs[-1][1], _worst(reference, culprit, samples, tolerance, compared)
    good = outputs_of(program, sample)
    bad = engine_values(culprit, sample, good)
    if culprit is not engine:
        culprit.close()
    return _inside(tuple(stages), good, bad, program, sample, tolerance, part)


def _graph_stage(
    name: str,
    reference: Engine,
    candidate: Engine,
    samples: Sequence[Sample],
    tolerance: Tolerance,
    compared: Sequence[ComparedTokens | None] | None,
) -> Stage:
    """A step of the lowering, whose graph may be one that nothing here can run."""
    try:
        return _stage(name, reference, candidate, samples, tolerance, compared)
    except MoecError as error:
        if error.code != "M208":
            raise
        return Stage(name, None, True, error.what)


def _stage(
    name: str,
    reference: Engine,
    candidate: Engine,
    samples: Sequence[Sample],
    tolerance: Tolerance | None,
    compared: Sequence[ComparedTokens | None] | None,
) -> Stage:
    result = compare(reference, candidate, samples, tolerance, compared)
    figures = "" if result.max_rms is None else result.figures(result.worst)
    return Stage(name, result.worst.deviation, result.ok, allowed=result.tolerance, figures=figures)


def _worst(
    reference: Engine,
    candidate: Engine,
    samples: Sequence[Sample],
    tolerance: Tolerance | None,
    compared: Sequence[ComparedTokens | None] | None,
) -> tuple[Sample, ComparedTokens | None]:
    parts: Sequence[ComparedTokens | None] = compared or [None for _ in samples]
    pairs = list(zip(samples, parts, strict=True))

    def used(pair: tuple[Sample, ComparedTokens | None]) -> tuple[float, float]:
        found = compare(reference, candidate, [pair[0]], tolerance, [pair[1]] if pair[1] else None)
        return found.used(found.worst), found.worst.deviation

    return max(pairs, key=used)


def _inside(
    stages: tuple[Stage, ...],
    good: Values,
    bad: Values,
    program: Program,
    sample: Sample,
    tolerance: Tolerance,
    compared: ComparedTokens | None = None,
) -> Divergence:
    """Name the layer and the expert in the stage that was found."""
    if compared is not None:
        good, bad = rows_of_tokens(good, bad, compared)
    layer, deviation, pair = first_layer(good, bad, tolerance)
    if pair is None:
        return Divergence(stages, stages[-1].name)
    ids = chosen_experts(program, sample, layer)
    ids = ids[compared.rows(len(ids))] if ids is not None and compared is not None else ids
    if ids is None or not len(ids) or pair[0].numel() % len(ids):
        return Divergence(stages, stages[-1].name, layer, deviation)
    wrong = wrong_tokens(*pair, len(ids), tolerance)
    return Divergence(stages, stages[-1].name, layer, deviation, blame(ids, wrong), int(wrong.sum()), len(ids))
