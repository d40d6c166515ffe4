"""Prove an engine: against the untouched model, on sizes and tokens that the capture never saw, on inputs that reach
every expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.streaming import StreamingEngine
from moec.frontend.source import Source
from moec.program.decoder_signature import PAST, SEQUENCE, cache_inputs
from moec.program.moe_call import moe_nodes
from moec.program.program import Input, Program
from moec.program.signature import Sample, converted
from moec.proof.cache_consistency import SIZES, Consistency, check_consistency
from moec.proof.compare import Comparison, Tolerance, compare
from moec.proof.coverage import Coverage, measure_load
from moec.proof.decided_tokens import NOISE, Decided, is_half
from moec.proof.inputs import decided_sample, most_decided, reach_decided, reach_experts, verification_sizes
from moec.proof.quality import Quality


@dataclass(frozen=True)
class Refused:
    """Sizes at which the reference runs and the candidate does not, with the first line of its error."""

    sizes: dict[str, int]
    reason: str


@dataclass(frozen=True)
class Verification:
    """The proof of an engine, as plain data.

    Attributes:
        comparison: errors of each output.
        coverage: the experts that the samples reached.
        sizes: dynamic dimensions of each sample that was compared.
        refused: sizes that the candidate cannot run. A dimension of 1 there is a limitation that is reported, since
            exporters specialise it; any other refusal is a failure.
        seed: of the samples.
        consistency: of a decoder with a cache: one text in one go, in chunks, and token by token.
        quality: on a text, when one was given.
        decided: in half precision, how many tokens were compared, where not all were: see `moec.proof.decided_tokens`.
            None when everything was.
    """

    comparison: Comparison
    coverage: Coverage
    sizes: tuple[dict[str, int], ...]
    refused: tuple[Refused, ...]
    seed: int
    consistency: Consistency | None = None
    quality: Quality | None = None
    decided: Decided | None = None

    @property
    def ok(self) -> bool:
        """Whether all outputs agree, in enough tokens, no size but those with a 1 was refused, a decoder's cache makes
        no difference, and a text's budget is kept."""
        parts = (self.consistency, self.quality)
        enough = self.decided is None or not self.decided.problem
        return (
            self.comparison.ok and enough and not self.failures and all(part.ok for part in parts if part is not None)
        )

    @property
    def failures(self) -> tuple[Refused, ...]:
        """Refusals that are not about a dimension of 1."""
        return tuple(r for r in self.refused if 1 not in r.sizes.values())

    def require(self) -> None:
        """Raise M101 unless `ok`."""
        for failure in self.failures:
            where = ", ".join(f"{k}={v}" for k, v in failure.sizes.items())
            fix = "fix the dimension with --input name=shape:dtype, or report this with `moec compile --dump DIR`"
            raise MoecError("M101", f"{self.comparison.candidate} cannot run at {where}: {failure.reason}", where, fix)
        if self.decided is not None:  # first: of what few tokens say, a difference is no finding either
            self.decided.require(self.comparison.candidate)
        self.comparison.require()
        if self.consistency is not None:
            self.consistency.require(self.comparison.candidate)
        if self.quality is not None:
            self.quality.require()

    def __str__(self) -> str:
        lines = [
            (
                f"{'equal' if self.ok else 'DIFFERS'}: {self.comparison.candidate} against "
                f"{self.comparison.reference}: {self.comparison}"
            ),
            str(self.coverage),
        ]
        lines += (
            [f"compared: {self.decided}", *filter(None, [self.decided.problem])] if self.decided is not None else []
        )
        if self.consistency is not None:
            lines.append(f"{self.consistency.title} {self.consistency}")
        lines += [
            f"cannot run at {', '.join(f'{k}={v}' for k, v in r.sizes.items())}: {r.reason}" for r in self.refused
        ]
        lines += [str(self.quality)] if self.quality is not None else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**asdict(self), "quality": self.quality.to_dict() if self.quality else None}


def verify(
    source: Source,
    engine: Engine,
    program: Program,
    tolerance: Tolerance,
    seed: int = 0,
    reference: Engine | None = None,
    precision: torch.dtype | None = None,
) -> Verification:
    """Compare an engine with the untouched model.

    Args:
        source: where the model comes from.
        engine: what is to be proven.
        program: what the engine was built from; tells which experts an input reaches.
        tolerance: what may differ, see `Tolerance.of`.
        seed: of the samples.
        reference: an engine to use instead of `source.reference()`, for a model that doesn't fit into memory.
        precision: what the engine computes in. In half precision, an engine that differs is held to the same tolerance
            once more on the tokens whose experts are decided there (`moec.proof.decided_tokens`); give it only where
            rounding is all that may differ.

    Raises:
        MoecError: M105 when the untouched model yields NaN or infinity.
    """
    streamed = reference is not None  # every run reads all weights anew: two sizes, and a shorter search
    reference, tries = reference or source.reference(), 4 if streamed else 48
    sizes, refused = _possible(source, engine, reference, streamed, seed)
    samples, coverage = reach_experts(program, source, sizes, seed, tries)
    held = [sample for sample in samples if engine.holds(_sizes_of(source.inputs, sample))]
    if len(held) < len(samples):  # the search for experts looks at larger ones
        samples, coverage = held, measure_load(program, held)
    comparison, decided = compare(reference, engine, samples, tolerance), None
    if not comparison.ok and is_half(precision) and coverage.loads:
        found = reach_decided(
            program,
            source,
            sizes,
            precision,
            seed,
            tries,
            coverage,
            lambda sample: engine.holds(_sizes_of(source.inputs, sample)),
        )
        samples, coverage, decided = found.samples, found.coverage, found.decided
        comparison = compare(reference, engine, samples, tolerance, found.kept)
    consistency = _consistency(source, engine, program, tolerance, seed + 7, precision)
    return Verification(
        comparison,
        coverage,
        tuple(_sizes_of(source.inputs, s) for s in samples),
        refused,
        seed,
        consistency,
        decided=decided,
    )


def _possible(
    source: Source, engine: Engine, reference: Engine, streamed: bool, seed: int
) -> tuple[list[dict[str, int]], tuple[Refused, ...]]:
    """Sizes that the engine is proven at, and those that it refuses although the reference takes them."""
    wanted = verification_sizes(source.inputs)[:2] if streamed else verification_sizes(source.inputs)
    wanted = [s for s in wanted if engine.holds(s)] or wanted[:1]
    possible = wanted if streamed else [s for s in wanted if _runs(reference, source.sample(s, seed)) is None]
    if not possible:
        reason = _runs(reference, source.sample(wanted[0], seed))
        raise MoecError(
            "M204",
            f"the untouched model runs at no size that was tried: {reason}",
            source.text,
            "give sample inputs that fit the model",
        )
    reasons = [_runs(engine, source.sample(s, seed)) for s in possible]
    refused = tuple(Refused(s, r) for s, r in zip(possible, reasons, strict=True) if r is not None)
    sizes = [s for s, r in zip(possible, reasons, strict=True) if r is None]
    if not sizes:
        raise MoecError(
            "M101",
            f"{engine.name} runs at no size that was tried: {refused[0].reason}",
            engine.name,
            "report this with `moec compile --dump DIR`",
        )
    return sizes, refused


def _consistency(
    source: Source, engine: Engine, program: Program, tolerance: Tolerance, seed: int, precision: torch.dtype | None
) -> Consistency | None:
    """Of a decoder that holds the text; in half precision once more on what is decided, when it fails on the whole."""
    if not cache_inputs(engine.inputs) or not engine.holds({**SIZES, PAST: SIZES[SEQUENCE]}):
        return None
    peer = StreamingEngine(program) if program.by_call else None
    found = check_consistency(engine, decided_sample(program, source, SIZES, seed), tolerance, peer)
    if found.ok or not is_half(precision) or not moe_nodes(program):
        return found
    sample, kept = most_decided(program, source, SIZES, precision, seed)
    decided = Decided(str(precision)[6:], NOISE[precision], kept.compared, kept.total)
    return check_consistency(engine, sample, tolerance, peer, kept, decided)


def _runs(engine: Engine, sample: Sample) -> str | None:
    """Why an engine cannot run a sample, None when it can."""
    try:
        engine(**converted(engine.inputs, sample))
    except Exception as error:  # runtimes raise whatever they like; the reason is reported
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    return None


def _sizes_of(inputs: Sequence[Input], sample: Mapping[str, object]) -> dict[str, int]:
    found: dict[str, int] = {}
    for spec in inputs:
        for name, size in zip(spec.shape, getattr(sample[spec.name], "shape", ()), strict=True):
            if isinstance(name, str):
                found[name] = int(size)
    return found
