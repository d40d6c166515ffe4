"""Check: the inputs reached every expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.coverage import Coverage
from moec.proof.evidence import compared
from moec.proof.trial import Trial


@dataclass(frozen=True)
class ExpertsReached(Check):
    """Which experts got tokens that were compared. Of one that got none, nothing is proven."""

    coverage: Coverage

    name: ClassVar[str] = "experts"
    title: ClassVar[str] = "Experts reached"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        coverage = trial.once(compared)[0].coverage
        return cls(coverage) if coverage.loads else None

    def error(self) -> MoecError | None:
        found = self.coverage
        if found.complete:
            return None
        block = next(load for load in found.loads if load.missed)
        what = f"{found.total - found.reached} of {found.total} experts were reached by none of {found.tried} inputs"
        where = f"{block.module or block.node}: {', '.join(map(str, block.missed))}"
        fix = "try other inputs with --seed N; an expert that no token reaches can go: --pass prune-experts"
        return MoecError("M104", what, where, fix)

    @property
    def note(self) -> str:
        found = self.coverage
        hang = f" {found.undecided} of {found.tokens} choices hang on rounding in the untouched model itself."
        return (
            f"{found.reached} of {found.total} experts reached; {found.tried} inputs tried, {found.samples} used."
            + (hang if found.undecided else "")
        )

    def figures(self) -> tuple[Figure, ...]:
        return tuple(
            Figure(
                load.module or load.node,
                {
                    "reached": f"{load.reached} of {len(load.assignments)}",
                    "not reached": ", ".join(map(str, load.missed)) or "–",
                },
                not load.missed,
            )
            for load in self.coverage.loads
        )

    def __str__(self) -> str:
        return str(self.coverage)
