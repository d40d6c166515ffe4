"""The inputs of a proof, and what of them could be compared; drawn once, for all checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.conditions import nearest
from moec.program.signature import Sample, converted
from moec.proof.compare import Comparison, Tolerance, compare
from moec.proof.coverage import Coverage, measure_load
from moec.proof.decided_tokens import ComparedTokens, Decided, is_half
from moec.proof.inputs import reach_decided, reach_experts, verification_sizes
from moec.proof.trial import Trial

TRIES, STREAMED_TRIES = 48, 24  # inputs that the search for experts looks at, beside those of the verification sizes


@dataclass(frozen=True)
class RefusedSize:
    """Sizes at which the reference runs and the engine does not, with the first line of its error."""

    sizes: dict[str, int]
    reason: str


@dataclass(frozen=True)
class ProvenSizes:
    """The sizes that a proof is made at, and those that the engine cannot run."""

    possible: list[dict[str, int]]
    refused: tuple[RefusedSize, ...]


@dataclass(frozen=True)
class Evidence:
    """Inputs that both sides run on.

    Attributes:
        samples: the inputs.
        coverage: experts that they reach, by tokens that are compared.
        compared: of each sample, the tokens that are compared; None when all are.
        decided: how many these are; None when all are.
    """

    samples: list[Sample]
    coverage: Coverage
    compared: list[ComparedTokens] | None = None
    decided: Decided | None = None


def sizes_to_prove(trial: Trial) -> ProvenSizes:
    """Sizes that the engine is proven at. Raises M204 when the reference runs at none of those that were tried, M101
    when the engine does not."""
    subject, engine = trial.subject, trial.engine
    source, seed = subject.source, subject.seed
    wanted = [*verification_sizes(source.inputs), *subject.captured.edges][: trial.most_sizes]
    held = [s for s in (held_nearest(trial, s) for s in wanted) if s is not None]
    wanted = [s for k, s in enumerate(held) if s not in held[:k]] or wanted[:1]
    possible = [s for s in wanted if subject.streamed or _why_not(trial.reference, source.sample(s, seed)) is None]
    if not possible:
        reason = _why_not(trial.reference, source.sample(wanted[0], seed))
        raise MoecError(
            "M204",
            f"{trial.reference.name} runs at no size that was tried: {reason}",
            source.text,
            "give sample inputs that fit the model",
        )
    reasons = [_why_not(engine, source.sample(s, seed)) for s in possible]
    refused = tuple(RefusedSize(s, r) for s, r in zip(possible, reasons, strict=True) if r is not None)
    sizes = [s for s, r in zip(possible, reasons, strict=True) if r is None]
    if not sizes:
        what = f"{engine.name} runs at no size that was tried: {refused[0].reason}"
        raise MoecError("M101", what, engine.name, "report this with `moec compile --dump DIR`")
    return ProvenSizes(sizes, refused)


def held_nearest(trial: Trial, sizes: dict[str, int]) -> dict[str, int] | None:
    """These sizes, or the nearest that the engine was made for; None where it holds neither."""
    if trial.holds_sizes(sizes):
        return sizes
    near = nearest(trial.engine.conditions, sizes)
    return near if near is not None and trial.holds_sizes(near) else None


def all_tokens(trial: Trial) -> Evidence:
    """Inputs that reach every expert, all their tokens compared."""
    subject = trial.subject
    sizes, tries = trial.once(sizes_to_prove).possible, STREAMED_TRIES if subject.streamed else TRIES
    samples, coverage = reach_experts(
        subject.program,
        subject.source,
        sizes,
        subject.seed,
        tries,
        trial.holds,
        patient=not subject.streamed,
        among=None if trial.searches_wide else sizes,
    )
    held = [sample for sample in samples if trial.holds(sample)]
    return Evidence(held, coverage if len(held) == len(samples) else measure_load(subject.program, held))


def decided_tokens(trial: Trial) -> Evidence:
    """Inputs that reach every expert by tokens whose experts are decided in the engine's half precision."""
    subject = trial.subject
    found = reach_decided(
        subject.program,
        subject.source,
        trial.once(sizes_to_prove).possible,
        subject.precision,
        subject.seed,
        STREAMED_TRIES if subject.streamed else TRIES,
        trial.once(all_tokens).coverage,
        trial.holds,
    )
    return Evidence(found.samples, found.coverage, found.tokens, found.decided)


def compared(trial: Trial) -> tuple[Evidence, Comparison]:
    """The comparison with the reference, and what was compared.

    In half precision, an engine that differs is held to the same tolerance once more, on the tokens whose experts are
    decided there (`moec.proof.decided_tokens`); only where rounding is all that may differ.
    """
    return compared_with(trial, trial.reference, trial.subject.tolerance, trial.subject.rounding)


def compared_with(
    trial: Trial, reference: Engine, tolerance: Tolerance | None, rounding: torch.dtype | None
) -> tuple[Evidence, Comparison]:
    """`compared`, with another reference and tolerance; `rounding`: the precision by which alone both may differ."""
    evidence = trial.once(all_tokens)
    comparison = compare(reference, trial.engine, evidence.samples, tolerance)
    if comparison.ok or not is_half(rounding) or not evidence.coverage.loads:
        return evidence, comparison
    evidence = trial.once(decided_tokens)
    return evidence, compare(reference, trial.engine, evidence.samples, tolerance, evidence.compared)


def _why_not(engine: Engine, sample: Sample) -> str | None:
    """Why an engine cannot run a sample, None when it can."""
    try:
        engine(**converted(engine.inputs, sample))
    except Exception as error:  # runtimes raise whatever they like; the reason is reported
        lines: Sequence[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    return None
