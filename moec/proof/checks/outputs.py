"""Check: the engine's outputs equal the untouched model's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.program.decoder_signature import is_present
from moec.proof.budgets import OverBudget
from moec.proof.checks.check import Check, Figure
from moec.proof.compare import Comparison
from moec.proof.difference import OutputError
from moec.proof.evidence import compared
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.shown import figure_of

REPORT_THIS = "report this with `moec compile --dump DIR`"  # a fault of moec's own, not of the passes


@dataclass(frozen=True)
class Outputs(Check):
    """The errors of each output beside the reference's.

    Attributes:
        approximate: whether passes were allowed to change the numbers.
    """

    comparison: Comparison
    approximate: bool = False

    name: ClassVar[str] = "outputs"
    title: ClassVar[str] = "Error of each output"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        return cls(trial.once(compared)[1], trial.subject.program.approximate)

    def error(self) -> MoecError | None:
        found = self.comparison
        if found.ok:
            return None
        worst = found.worst
        figures = found.figures(worst)
        allowed = found.deviation_of(worst)
        if found.max_rms is None:
            bound = found.allowed if allowed is None else f"{figure_of(allowed)} allowed"
            figures = (
                f"max |d|/std {worst.deviation:.2g} ({bound}), max |d| {worst.max_abs:.2g}, cosine {worst.cosine:.4g}"
            )
        what = f"{found.candidate} differs from {found.reference} in {worst.name!r}: {worst.problem or figures}"
        where = f"output {worst.name!r}, {found.samples} samples"
        return (OverBudget if self.approximate else MoecError)("M101", what, where, self.way_out)

    def turned_by(self, subject: Subject) -> tuple[str, ...]:
        return ("tolerance", "target") if self.measurable else ()

    @property
    def measurable(self) -> bool:
        """Whether every output deviates by a number; a missing one, or one that is not finite, no bound accepts."""
        outputs = self.comparison.outputs
        return bool(outputs) and all(not o.problem and math.isfinite(o.deviation) for o in outputs)

    @property
    def way_out(self) -> str:
        """What can be done about outputs that differ."""
        if self.approximate:
            return "make the passes less aggressive, or allow more with --tolerance"
        return "find the cause with `moec verify --bisect`, or in `moec compile --dump DIR`"

    def figures(self) -> tuple[Figure, ...]:
        """A row an output; of the tensors of a cache that are right, which are two a layer, the worst."""
        within, outputs = self.comparison.within, self.comparison.outputs
        cache = [o for o in outputs if is_present(o.name) and within(o)]
        worst = max(cache, key=lambda o: (self.comparison.used(o), o.deviation), default=None)
        rows = [o for o in outputs if o is worst or o not in cache]
        named = (
            {worst.name: f"{worst.name}, the worst of {len(cache)} tensors of the cache"}
            if worst and len(cache) > 1
            else {}
        )
        ranked = any(o.top1 is not None for o in rows)
        return tuple(Figure(named.get(o.name, o.name), self._values(o, ranked), within(o)) for o in rows)

    @property
    def note(self) -> str:
        found = self.comparison
        lead = f"{found.candidate} beside {found.reference}, {found.samples} inputs."
        largest = "the largest difference, measured in standard deviations of the reference's output"
        if found.max_rms is None and found.tolerance is None:
            return f"{lead} What decides is the quality on a text; the first figure is {largest}."
        if found.max_rms is None:
            return f"{lead} The first figure decides: {largest}."
        row = "" if found.max_row is None else f", {found.max_row:g} for that of the worst row"
        beside = "" if found.tolerance is None else f" So does {largest}, where {found.tolerance:g} is allowed."
        return (
            f"{lead} What decides is rms(d)/std, the root mean square of the differences in standard deviations of the "
            f"reference's output: {found.max_rms:g} is the budget of {found.why}{row}.{beside}"
        )

    def _spread(self, o: OutputError) -> dict[str, str]:
        bounds = (
            ("rms(d)/std", o.rms, "rms", self.comparison.max_rms),
            ("worst row", o.row, "row", self.comparison.max_row),
        )
        found: dict[str, str] = {}
        for name, figure, short, bound in bounds:
            found |= {} if bound is None else {name: f"{figure:.2e}", f"{short} allowed": figure_of(bound)}
        return found

    def _values(self, o: OutputError, ranked: bool) -> dict[str, str]:
        hangs = f" + {100 * o.top1_undecided:.2g} % undecided" if o.top1_undecided else ""
        allowed = self.comparison.deviation_of(o)
        values = {
            "max|d|/std": f"{o.deviation:.2e}",
            **({} if allowed is None else {"allowed": figure_of(allowed)}),
            **self._spread(o),
            "max|d|": f"{o.max_abs:.2e}",
            "mean|d|": f"{o.mean_abs:.2e}",
            "relative": f"{o.relative:.2e}",
            "cosine": f"{o.cosine:.4g}",
        }
        if ranked:
            values["top-1"] = "–" if o.top1 is None else f"{100 * o.top1:.4g} %{hangs}"
        return {**values, "problem": o.problem} if o.problem else values

    def __str__(self) -> str:
        return str(self.comparison)
