"""The inputs of a proof, and what of them could be compared; drawn once, for all checks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.conditions import nearest
from moec.program.decoder_signature import PAST
from moec.program.program import Program
from moec.program.signature import Sample, converted
from moec.proof.chosen_keys import key_choices
from moec.proof.compare import Comparison, Tolerance, compare
from moec.proof.coverage import Coverage, measure_load
from moec.proof.decided_tokens import NOISE, ComparedTokens, Decided, is_causal, is_half, look
from moec.proof.inputs import reach_decided, reach_experts
from moec.proof.reach import Reach
from moec.proof.sizes import Beyond, SizePlan, named, plan_sizes
from moec.proof.trial import Trial

OUTSIDE = "the engine is made for other sizes"
EDGE = "they, or tokens that they see, choose between experts, or keys, that rounding can't tell apart"
TRIES, STREAMED_TRIES = 48, 24  # inputs that the search for experts looks at, beside those of the verification sizes


@dataclass(frozen=True)
class RefusedSize:
    """Sizes at which the reference runs and the engine does not, with the first line of its error."""

    sizes: dict[str, int]
    reason: str


@dataclass(frozen=True)
class ProvenSizes:
    """The sizes that a proof is made at.

    Attributes:
        possible: small ones, at which both sides run; a search for experts starts from them.
        refused: those that the engine cannot run.
        far: long ones, at which both sides run.
        plan: what was to be run, and the model's bounds.
        beyond: what was left out, and why.
    """

    possible: list[dict[str, int]]
    refused: tuple[RefusedSize, ...]
    far: list[dict[str, int]] = field(default_factory=list)
    plan: SizePlan = field(default_factory=lambda: SizePlan([]))
    beyond: tuple[Beyond, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Inputs that both sides run on.

    Attributes:
        samples: small inputs.
        coverage: experts that they reach, by tokens that are compared.
        compared: of each of `whole`, the tokens that are compared, None when all are; None when all of all are.
        decided: how many these are in half precision, or where keys are chosen; None when all are.
        far: long inputs, which are compared and don't count for experts.
    """

    samples: list[Sample]
    coverage: Coverage
    compared: list[ComparedTokens | None] | None = None
    decided: Decided | None = None
    far: Sequence[Sample] = ()

    @property
    def whole(self) -> list[Sample]:
        """All inputs, small ones first."""
        return [*self.samples, *self.far]


def size_plan(trial: Trial) -> SizePlan:
    """The sizes that the model asks for."""
    subject = trial.subject
    return plan_sizes(subject.source, subject.captured, subject.streamed)


def sizes_to_prove(trial: Trial) -> ProvenSizes:
    """Sizes that the engine is proven at. Raises M204 when the reference runs at none of those that were tried, M101
    when the engine does not."""
    subject, engine = trial.subject, trial.engine
    source, seed = subject.source, subject.seed
    plan = trial.once(size_plan)
    asked = plan.near[: trial.most_sizes]
    held = [s for s in (held_nearest(trial, s) for s in asked) if s is not None]
    wanted = [s for k, s in enumerate(held) if s not in held[:k]] or asked[:1]
    samples = [(s, source.sample(s, seed)) for s in wanted]
    runnable = [(s, x) for s, x in samples if subject.streamed or why_not(trial.reference, x) is None]
    possible = [s for s, _ in runnable]
    if not possible:
        reason = why_not(trial.reference, source.sample(wanted[0], seed))
        raise MoecError(
            "M204",
            f"{trial.reference.name} runs at no size that was tried: {reason}",
            source.text,
            "give sample inputs that fit the model",
        )
    reasons = [why_not(engine, sample) for _, sample in runnable]
    refused = [RefusedSize(s, r) for s, r in zip(possible, reasons, strict=True) if r is not None]
    sizes = [s for s, r in zip(possible, reasons, strict=True) if r is None]
    if not sizes:
        what = f"{engine.name} runs at no size that was tried: {refused[0].reason}"
        raise MoecError("M101", what, engine.name, "report this with `moec compile --dump DIR`")
    far, more, beyond = _far_sizes(trial, plan)
    beyond = [*(Beyond(named(s), OUTSIDE) for s in asked if s not in wanted), *beyond]
    return ProvenSizes(sizes, (*refused, *more), far, plan, tuple(beyond))


def _far_sizes(trial: Trial, plan: SizePlan) -> tuple[list[dict[str, int]], list[RefusedSize], list[Beyond]]:
    """The long sizes at which both sides run; those that the engine cannot run; those that it is not asked for."""
    found, refused, beyond = list[dict[str, int]](), list[RefusedSize](), list(plan.beyond)
    for sizes in plan.far:
        why = _not_asked(trial, sizes)
        if why is not None:
            beyond.append(Beyond(named(sizes), why))
            sizes = _longest(trial, plan, sizes)
        if not sizes or sizes in (*plan.near, *found):
            continue
        reason = why_not(trial.engine, trial.subject.source.sample(sizes, trial.subject.seed))
        found += [] if reason is not None else [sizes]
        refused += [] if reason is None else [RefusedSize(sizes, reason)]
    return found, refused, beyond


def _not_asked(trial: Trial, sizes: dict[str, int]) -> str | None:
    """Why an engine is not asked for sizes: it is made for others, or the model does not run there either."""
    if not trial.holds_sizes(sizes):
        return OUTSIDE
    sample = trial.subject.source.sample(sizes, trial.subject.seed)
    reason = None if trial.subject.streamed else why_not(trial.reference, sample)
    return reason and f"the model itself does not run there: {reason}"


def _longest(trial: Trial, plan: SizePlan, sizes: dict[str, int]) -> dict[str, int]:
    """In the place of the full context, where some of it cannot be used: the longest that the engine is made for, then
    the longest at which the model runs that is found in steps of 1, 2, 4 and so on. In the place of any, the nearest
    that its conditions allow."""
    name = max(sizes, key=lambda name: sizes[name], default="")
    near = nearest(trial.engine.conditions, sizes)
    if near is not None and near != sizes and _not_asked(trial, near) is None:
        return near
    if sizes not in plan.whole:
        return {}
    held = most_held(trial, sizes, name)[name]
    steps = (0, *(2**k for k in range(held.bit_length() - 1)))
    shorter = ({**sizes, name: held - step} for step in steps)
    return next((s for s in shorter if s[name] > 0 and _not_asked(trial, s) is None), {})


def most_held(trial: Trial, sizes: dict[str, int], name: str) -> dict[str, int]:
    """These sizes with as much of one dimension as the engine is made for; 0 where it takes none."""
    counts = range(1, sizes[name] + 1)
    return {**sizes, name: bisect_left(counts, True, key=lambda n: not trial.holds_sizes({**sizes, name: n}))}


def held_nearest(trial: Trial, sizes: dict[str, int]) -> dict[str, int] | None:
    """These sizes, or the nearest that the engine was made for, or as much of the first dimension as it takes; None
    where it holds none of them."""
    if trial.holds_sizes(sizes):
        return sizes
    near = nearest(trial.engine.conditions, sizes)
    if near is not None and trial.holds_sizes(near):
        return near
    first = next(iter(sizes), "")
    fewer = most_held(trial, sizes, first) if first else {}
    return fewer if fewer.get(first) else None


def all_tokens(trial: Trial) -> Evidence:
    """Inputs that reach every expert, and long ones; all their tokens compared."""
    subject, proven = trial.subject, trial.once(sizes_to_prove)
    samples, coverage = reach_experts(
        subject.program,
        subject.source,
        proven.possible,
        subject.seed,
        STREAMED_TRIES if subject.streamed else TRIES,
        trial.holds,
        patient=not subject.streamed,
        among=None if trial.searches_wide else proven.possible,
        in_memory=not subject.streamed,
    )
    held = [sample for sample in samples if trial.holds(sample)]
    if len(held) < len(samples):
        coverage = measure_load(subject.program, held, None if subject.streamed else Reach(subject.program))
    far = [subject.source.sample(s, subject.seed + 100 * k) for k, s in enumerate(proven.far, len(proven.possible))]
    return Evidence(held, coverage, far=far)


def far_decided(trial: Trial) -> Evidence:
    """`all_tokens`, where only those tokens of long inputs are compared whose experts no rounding in float32 can
    change: among thousands, a few stand at an edge. Where a model chooses keys, which may tie in any text, so it is
    with short inputs."""
    return _far_decided(trial, trial.subject.program)


def captured_far_decided(trial: Trial) -> Evidence:
    """`far_decided`, by the experts that the program chooses before the passes."""
    return _far_decided(trial, trial.subject.captured)


def _far_decided(trial: Trial, program: Program) -> Evidence:
    found = trial.once(all_tokens)
    causal = is_causal(program, found.samples[0])
    noise = NOISE[torch.float32]
    tokens = [look(program, sample, noise, causal)[0] for sample in found.far]
    if not key_choices(program):
        return replace(found, compared=[*(None for _ in found.samples), *tokens])
    near = [look(program, sample, noise, causal) for sample in found.samples]
    count, total = (sum(getattr(part, name) for part, _ in near) for name in ("count", "total"))
    decided = Decided("float32", noise, count, total, _lost(found.coverage, [load for _, load in near]), "keys")
    return replace(found, compared=[*(part for part, _ in near), *tokens], decided=decided)


def _lost(coverage: Coverage, loads: Sequence[Mapping[str, Tensor]]) -> int:
    """Experts that inputs reach, and none of the tokens that are compared: `loads` has theirs of each input."""
    reached = {name: torch.stack([load[name] for load in loads]).sum(0) > 0 for name in loads[0]}
    return sum(
        e not in load.missed and not bool(reached[load.node][e])
        for load in coverage.counted
        for e in range(len(load.assignments))
    )


def decided_tokens(trial: Trial) -> Evidence:
    """Inputs that reach every expert by tokens whose experts are decided in the engine's half precision. Of the long
    ones, those with few tokens after a cache: in long texts hardly a token sees no undecided one."""
    subject, proven = trial.subject, trial.once(sizes_to_prove)
    caches = [s for s in proven.far if s.get(PAST)]
    found = reach_decided(
        subject.program,
        subject.source,
        [*proven.possible, *caches],
        subject.precision,
        subject.seed,
        STREAMED_TRIES if subject.streamed else TRIES,
        trial.once(all_tokens).coverage,
        trial.holds,
    )
    coverage = found.coverage.with_effects_of(trial.once(all_tokens).coverage)
    return Evidence(found.samples, coverage, list(found.tokens), found.decided)


def compared(trial: Trial) -> tuple[Evidence, Comparison]:
    """The comparison with the reference, and what was compared.

    In half precision, an engine that differs is held to the same tolerance once more, on the tokens whose experts are
    decided there (`moec.proof.decided_tokens`); only where rounding is all that may differ. In float32, this is done
    with long inputs, and with all inputs of a model that chooses keys.
    """
    return compared_with(trial, trial.reference, trial.subject.tolerance, trial.subject.rounding)


def compared_with(
    trial: Trial, reference: Engine, tolerance: Tolerance | None, rounding: torch.dtype | None
) -> tuple[Evidence, Comparison]:
    """`compared`, with another reference and tolerance; `rounding`: the precision by which alone both may differ. Where
    passes may change more, long inputs are left to the comparisons before and after them."""
    evidence = trial.once(all_tokens)
    if rounding is None:
        return evidence, compare(reference, trial.engine, evidence.samples, tolerance)
    comparison = compare(reference, trial.engine, evidence.whole, tolerance)
    keys = bool(key_choices(trial.subject.program))
    if comparison.ok or not (evidence.coverage.counted or keys) or not (is_half(rounding) or evidence.far or keys):
        return evidence, comparison
    evidence = trial.once(decided_tokens if is_half(rounding) else far_decided)
    return evidence, compare(reference, trial.engine, evidence.whole, tolerance, evidence.compared)


def why_not(engine: Engine, sample: Sample) -> str | None:
    """Why an engine cannot run a sample, None when it can."""
    try:
        engine(**converted(engine.inputs, sample))
    except Exception as error:  # runtimes raise whatever they like; the reason is reported
        lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    return None
