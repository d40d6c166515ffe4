"""Check: each quantized weight is as near to what it stands for as its grid allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.program.program import Program
from moec.proof.checks.check import Check, Figure
from moec.proof.trial import Trial
from moec.proof.weight_error import FITTED, ROUNDED, WeightError, weight_errors

_SHOWN = 8  # rows of right weights: a model has hundreds


@dataclass(frozen=True)
class QuantizedWeights(Check):
    """The errors of quantized weights by value; see `moec.proof.weight_error`.

    Attributes:
        compared: how many weights were looked at.
        worst: those furthest off beside what rounding costs; every wrong one is among them.
        unknown: names of those whose untouched form could not be found; nothing is proven of them here.
    """

    compared: int
    worst: tuple[WeightError, ...]
    unknown: tuple[str, ...] = ()

    name: ClassVar[str] = "weights"
    title: ClassVar[str] = "Error of quantized weights"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        """Where passes quantized. Reads each of their weights once."""
        return cls.of(trial.subject.program, trial.subject.captured)

    @classmethod
    def of(cls, program: Program, captured: Program) -> Self | None:
        """Of a program and what it was made of; None where no pass put weights on a grid."""
        if not any(step.widths for step in program.history):
            return None
        errors, unknown = weight_errors(program, captured.weights)
        wrong = [e for e in errors if not e.ok]
        right = sorted((e for e in errors if e.ok), key=lambda e: -e.times)
        return cls(len(errors), (*wrong, *right[: max(0, _SHOWN - len(wrong))]), tuple(unknown))

    def error(self) -> MoecError | None:
        found = max((e for e in self.worst if not e.ok), key=lambda e: e.times, default=None)
        if found is None:
            return None
        what = (
            f"a quantized weight is further from what it stands for than its {found.bits} bits explain: "
            f"{100 * found.relative:.3g} % of its norm, rounding to nearest costs {100 * found.rounded:.3g} %, and its "
            f"scale is off by {100 * (found.scale - 1):.2g} %"
        )
        return MoecError("M102", what, found.place, "report this with `moec compile --dump DIR`")

    @property
    def note(self) -> str:
        return (
            f"{self.compared} weights, each expert's matrix by itself. An error may be {ROUNDED:g} times that of "
            f"rounding to nearest, or {FITTED:g} times where the matrix keeps its scale, as methods that look at data "
            "leave it."
        )

    def figures(self) -> tuple[Figure, ...]:
        rows = [
            Figure(
                e.place,
                {
                    "bits": str(e.bits),
                    "error": f"{100 * e.relative:.3g} %",
                    "of rounding": f"{100 * e.rounded:.3g} %",
                    "times": f"{e.times:.3g}",
                    "scale off by": f"{100 * (e.scale - 1):.2g} %",
                },
                e.ok,
            )
            for e in self.worst
        ]
        return (*rows, *(Figure(name, {"error": "its untouched form was not found"}, None) for name in self.unknown))

    def __str__(self) -> str:
        times = max((e.times for e in self.worst), default=0.0)
        left = f", {len(self.unknown)} not compared" if self.unknown else ""
        return f"{self.compared} quantized weights, at most {times:.3g} times the error of rounding{left}"
