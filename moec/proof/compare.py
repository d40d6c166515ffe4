"""How far two engines are apart, as figures that a person can judge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.decoder_signature import without_padding
from moec.program.program import AppliedPass
from moec.program.signature import Sample, converted
from moec.proof.budgets import budget_of
from moec.proof.decided_tokens import ComparedTokens
from moec.proof.difference import Difference, OutputError, difference, summary
from moec.proof.digits import at_most
from moec.shown import figure_of

# max |difference| / std(reference) that rounding alone explains in a network of tens of layers computed in this dtype
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_UNDECIDED = 0.5  # how far apart two candidates are, in the same unit, that a quality budget may swap


@dataclass(frozen=True)
class Tolerance:
    """What may differ.

    Attributes:
        deviation: the largest `max |candidate - reference| / std(reference)` of any output in any sample.
        rms: the largest `rms(candidate - reference) / std(reference)`: the budget of approximate passes, whose largest
            single error says little. why: where it comes from, in words.
    """

    deviation: float = math.inf
    rms: float = math.inf
    why: str = ""

    @classmethod
    def of(cls, dtype: torch.dtype) -> Tolerance:
        """The tolerance of a conversion that computes in `dtype`."""
        return cls(_ROUNDING[dtype])

    @classmethod
    def of_passes(cls, history: Sequence[AppliedPass]) -> Tolerance:
        """The default of all approximate passes together on what is no language model, see `moec.proof.budgets`."""
        budget = budget_of(history)
        return cls(rms=budget.max_rms, why=budget.why)

    @property
    def single(self) -> float:
        """By how much one element has to differ to be suspected, in standard deviations of the reference."""
        return min(self.deviation, self.rms)


@dataclass(frozen=True)
class Comparison:
    """The differences between a reference and a candidate.

    Attributes:
        reference, candidate: names of the engines.
        tolerance: what `deviation` may be; None where something else decides.
        samples: how many inputs were run.
        outputs: one entry an output.
        max_rms, why: what `rms` may be, and where that comes from; None where nothing bounds it. Without either bound a
            text decides, and outputs only have to be numbers.
    """

    reference: str
    candidate: str
    tolerance: float | None
    samples: int
    outputs: tuple[OutputError, ...]
    max_rms: float | None = None
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether every output is within the tolerance."""
        return bool(self.outputs) and all(map(self.within, self.outputs))

    def within(self, output: OutputError) -> bool:
        """Whether one output is within the tolerance: without one, whether it is made of numbers and has a finite
        deviation."""
        if output.problem or not math.isfinite(output.deviation):
            return False
        near = self.max_rms is None or at_most(output.rms, self.max_rms)
        return near and (self.tolerance is None or at_most(output.deviation, self.tolerance))

    @property
    def allowed(self) -> str:
        """What may differ, in words."""
        bounds = [] if self.tolerance is None else [f"{figure_of(self.tolerance)} allowed"]
        bounds += [] if self.max_rms is None else [f"rms {figure_of(self.max_rms)} allowed ({self.why})"]
        return ", ".join(bounds) or "a text decides"

    def figures(self, output: OutputError) -> str:
        """What decides about an output beside what is allowed, in words."""
        largest = f"max |d|/std {output.deviation:.2g}"
        if self.max_rms is None:
            bound = f", {self.allowed}" if self.tolerance is None else f" {self._bound(self.tolerance)}"
            return f"{largest}{bound}"
        said = f"rms(d)/std {output.rms:.2g} {self._bound(self.max_rms)} ({self.why}), cosine {output.cosine:.4g}"
        return said if self.tolerance is None else f"{largest} {self._bound(self.tolerance)}, {said}"

    def _bound(self, value: float) -> str:
        return f"of {figure_of(value)} allowed" if self.ok else f"where {figure_of(value)} is allowed"

    @property
    def worst(self) -> OutputError:
        """The output that deviates most."""
        by_rms = self.max_rms is not None
        return max(self.outputs, key=lambda o: (not self.within(o), o.rms if by_rms else o.deviation))

    def __str__(self) -> str:
        w = self.worst
        if w.problem:
            return f"{w.name}: {w.problem}"
        if self.tolerance is None and self.max_rms is None:
            return f"max |d|/std {w.deviation:.2g} in {w.name}, which {self.allowed} about"
        return self.figures(w) + (f" in {w.name}" if len(self.outputs) > 1 else "")


def compare(
    reference: Engine,
    candidate: Engine,
    samples: Iterable[Sample],
    tolerance: Tolerance | None,
    compared: Sequence[ComparedTokens | None] | None = None,
) -> Comparison:
    """Run both engines on the samples and measure the difference in each output of the reference.

    Everything is compared, padded positions too, except in decoders with a cache, where a row of padding may see
    nothing at all. With `compared`, one a sample, only those tokens; all where it is None. Without a tolerance, outputs
    only have to be numbers. Raises M105 when the reference itself yields NaN or infinity.
    """
    found: dict[str, list[Difference]] = {}
    margin, count = min(tolerance.single, _UNDECIDED) if tolerance else _UNDECIDED, 0
    for count, sample in enumerate(samples, 1):
        want, got = (engine(**converted(engine.inputs, sample)) for engine in (reference, candidate))
        for name, value in want.items():
            found.setdefault(name, []).append(
                difference(
                    name, *_parts(value, got.get(name), sample, compared[count - 1] if compared else None), margin
                )
            )
    if not found:
        raise MoecError(
            "M799", "two engines were to be compared on nothing", f"{count} samples of {candidate.name}", "report this"
        )
    outputs = tuple(summary(name, differences) for name, differences in found.items())
    allowed = tolerance or Tolerance()
    deviation, rms = (b if math.isfinite(b) else None for b in (allowed.deviation, allowed.rms))
    return Comparison(reference.name, candidate.name, deviation, count, outputs, rms, allowed.why)


def _parts(
    want: Tensor, got: Tensor | None, sample: Sample, tokens: ComparedTokens | None
) -> tuple[Tensor, Tensor | None]:
    """What of two outputs is to be compared."""
    if got is None or got.shape != want.shape:
        return want, got
    return (
        (tokens.of(want, sample), tokens.of(got, sample))
        if tokens
        else (without_padding(want, sample), without_padding(got, sample))
    )
