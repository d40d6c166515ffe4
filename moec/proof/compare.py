"""How far two engines are apart, as figures that a person can judge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.decoder_signature import is_sum, without_padding
from moec.program.program import AppliedPass
from moec.program.signature import Input, Sample, converted
from moec.proof.budgets import budget_of
from moec.proof.decided_tokens import ComparedTokens
from moec.proof.difference import Difference, OutputError, difference, summary
from moec.proof.digits import at_most
from moec.shown import figure_of

# max |difference| / std(reference) that rounding alone explains in a network of tens of layers computed in this dtype
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
# a recurrent state, in units of its own spread: each of its numbers sums over all tokens, and few are large. Eager
# float32 was measured 4.6e-4 from float64 in layer 10 of a Qwen3-Next of 0.3 B parameters, and 9e-5 in its logits
_STATES = 2.0
_UNDECIDED = 0.5  # how far apart two candidates are, in the same unit, that a quality budget may swap


@dataclass(frozen=True)
class Tolerance:
    """What may differ.

    Attributes:
        deviation: the largest `max |candidate - reference| / std(reference)` of any output in any sample.
        rms: the largest `rms(candidate - reference) / std(reference)`: the budget of approximate passes, whose largest
            single error says little. row: the same of any one row (last dimension). why: where both come from, in
            words.
        states: by how much more recurrent states may deviate.
    """

    deviation: float = math.inf
    rms: float = math.inf
    why: str = ""
    row: float = math.inf
    states: float = 1.0

    @classmethod
    def of(cls, dtype: torch.dtype) -> Tolerance:
        """The tolerance of a conversion that computes in `dtype`."""
        return cls(_ROUNDING[dtype], states=_STATES)

    @classmethod
    def of_passes(cls, history: Sequence[AppliedPass]) -> Tolerance:
        """The default of all approximate passes together on what is no language model, see `moec.proof.budgets`."""
        budget = budget_of(history)
        return cls(rms=budget.max_rms, why=budget.why, row=budget.max_row)

    def used(self, deviation: float, rms: float, row: float) -> float:
        """The largest share of a bound that figures of these names take; more than 1 is too much, 0 without any."""
        return max(_share(deviation, self.deviation), _share(rms, self.rms), _share(row, self.row))


def _share(figure: float, bound: float) -> float:
    if not math.isfinite(bound):
        return 0.0
    return figure / bound if bound else (math.inf if figure else 0.0)


@dataclass(frozen=True)
class Comparison:
    """The differences between a reference and a candidate.

    Attributes:
        reference, candidate: names of the engines.
        tolerance: what `deviation` may be; None where something else decides.
        samples: how many inputs were run.
        outputs: one entry an output.
        max_rms, max_row, why: what `rms` and `row` may be, and where that comes from; None where nothing bounds them.
            Without any bound a text decides, and outputs only have to be numbers.
        states: by how much more than `tolerance` recurrent states may deviate.
    """

    reference: str
    candidate: str
    tolerance: float | None
    samples: int
    outputs: tuple[OutputError, ...]
    max_rms: float | None = None
    why: str = ""
    max_row: float | None = None
    states: float = 1.0

    @property
    def ok(self) -> bool:
        """Whether every output is within the tolerance."""
        return bool(self.outputs) and all(map(self.within, self.outputs))

    def within(self, output: OutputError) -> bool:
        """Whether one output is within the tolerance: without one, whether it is made of numbers and has a finite
        deviation."""
        if output.problem or not math.isfinite(output.deviation):
            return False
        return all(at_most(figure, bound) for _, figure, bound in self.bounds(output))

    def deviation_of(self, output: OutputError) -> float | None:
        """What `deviation` may be of this output."""
        more = self.states if is_sum(output.name) else 1.0
        return None if self.tolerance is None else more * self.tolerance

    def bounds(self, output: OutputError) -> list[tuple[str, float, float]]:
        """What decides about an output: the name of each figure that is bounded, what was found, and what is
        allowed."""
        figures = (
            ("max |d| / std", output.deviation, self.deviation_of(output)),
            ("rms(d) / std", output.rms, self.max_rms),
            ("rms(d) / std of the worst row", output.row, self.max_row),
        )
        return [(name, found, bound) for name, found, bound in figures if bound is not None]

    def used(self, output: OutputError) -> float:
        """The largest share of a bound that an output takes: by this the worst is found; 0 without bounds."""
        return max((_share(found, bound) for _, found, bound in self.bounds(output)), default=0.0)

    @property
    def allowed(self) -> str:
        """What may differ, in words."""
        bounds = [] if self.tolerance is None else [f"{figure_of(self.tolerance)} allowed"]
        row = "" if self.max_row is None else f", {figure_of(self.max_row)} in a row"
        bounds += [] if self.max_rms is None else [f"rms {figure_of(self.max_rms)}{row} allowed ({self.why})"]
        return ", ".join(bounds) or "a text decides"

    def figures(self, output: OutputError) -> str:
        """What decides about an output beside what is allowed, in words."""
        largest, allowed = f"max |d|/std {output.deviation:.2g}", self.deviation_of(output)
        if self.max_rms is None:
            bound = f", {self.allowed}" if allowed is None else f" {self._bound(allowed)}"
            return f"{largest}{bound}"
        row = "" if self.max_row is None else f", worst row {output.row:.2g} of {figure_of(self.max_row)}"
        said = f"rms(d)/std {output.rms:.2g} {self._bound(self.max_rms)} ({self.why}){row}, cosine {output.cosine:.4g}"
        return said if allowed is None else f"{largest} {self._bound(allowed)}, {said}"

    def _bound(self, value: float) -> str:
        return f"of {figure_of(value)} allowed" if self.ok else f"where {figure_of(value)} is allowed"

    @property
    def worst(self) -> OutputError:
        """The output that takes most of what is allowed; without bounds, that deviates most."""
        return max(self.outputs, key=lambda o: (not self.within(o), self.used(o), o.deviation))

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
    margin, count = min(tolerance.deviation, tolerance.rms, _UNDECIDED) if tolerance else _UNDECIDED, 0
    for count, sample in enumerate(samples, 1):
        want, got = (engine(**converted(engine.inputs, sample)) for engine in (reference, candidate))
        for name, value in want.items():
            found.setdefault(name, []).append(
                difference(
                    name,
                    *_parts(
                        name, value, got.get(name), sample, compared[count - 1] if compared else None, reference.inputs
                    ),
                    margin,
                )
            )
    if not found:
        raise MoecError(
            "M799", "two engines were to be compared on nothing", f"{count} samples of {candidate.name}", "report this"
        )
    outputs = tuple(summary(name, differences) for name, differences in found.items())
    allowed = tolerance or Tolerance()
    deviation, rms, row = (b if math.isfinite(b) else None for b in (allowed.deviation, allowed.rms, allowed.row))
    figures = reference.name, candidate.name, deviation, count, outputs, rms, allowed.why, row, allowed.states
    return Comparison(*figures)


def _parts(
    name: str,
    want: Tensor,
    got: Tensor | None,
    sample: Sample,
    tokens: ComparedTokens | None,
    inputs: Sequence[Input],
) -> tuple[Tensor, Tensor | None]:
    """What is to be compared of an output and its counterpart."""
    if got is None or got.shape != want.shape:
        return want, got
    of = tokens.of if tokens else without_padding
    return of(want, sample, name, inputs), of(got, sample, name, inputs)
