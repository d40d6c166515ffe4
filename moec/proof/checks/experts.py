"""Check: the inputs reached every expert, and every other matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.coverage import Coverage, ExpertLoad
from moec.proof.driven import drive
from moec.proof.evidence import compared
from moec.proof.reach import BY_HAND
from moec.proof.trial import Trial

_OUT = "try other inputs with --seed N, or take what no input reaches out of the model"


@dataclass(frozen=True)
class ExpertsReached(Check):
    """Which experts got tokens that were compared, and that a comparison would have seen spoiled. Of one that got none,
    nothing is proven; nor of another matrix that no input reached.

    Attributes:
        coverage: what was reached.
        streamed: whether the reference was, so that mixtures in plain operators could not be looked at.
    """

    coverage: Coverage
    streamed: bool = False

    name: ClassVar[str] = "experts"
    title: ClassVar[str] = "Experts reached"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        evidence, subject = trial.once(compared)[0], trial.subject
        coverage = evidence.coverage
        sides = [trial.engine] if subject.against is None else [trial.engine, trial.reference]
        for engine in sides if not coverage.complete else ():  # of two engines, both have to be right
            coverage = drive(
                subject.program, engine, evidence.samples, coverage, subject.lowering_tolerance, subject.precision,
                subject.seed, None if subject.program.approximate else trial.reference,
            )  # fmt: skip
        return cls(coverage, subject.streamed) if coverage.loads or coverage.unused else None

    def error(self) -> MoecError | None:
        found = self.coverage
        if found.complete:
            return None
        if bad := next((load for load in found.loads if load.wrong), None):
            what = f"the engine's block differs on rows that its router sends to {_named(bad.wrong)}"
            return MoecError("M101", what, bad.place, "report this with `moec compile --dump DIR`")
        block = next((load for load in found.loads if load.missed), None)
        if block is None:
            what = f"{len(found.unused)} matrices were reached by none of {found.tried} inputs"
            return MoecError("M104", what, ", ".join(found.unused[:3]), _OUT)
        missed = sum(len(load.missed) for load in found.loads)
        what = f"{missed} of {found.total} experts were reached by none of {found.tried} inputs"
        where = f"{block.place}: {', '.join(map(str, block.missed))}"
        if faint := set(block.missed) & set(block.faint):
            where += f" ({len(faint)} too weakly for a comparison to see it)"
        return MoecError("M104", what, where, self._way_out(block))

    def _way_out(self, block: ExpertLoad) -> str:
        if block.node != BY_HAND:
            return "try other inputs with --seed N; an expert that no token reaches can go: --pass prune-experts"
        if self.streamed:
            return "these experts are written in plain operators; prove them with the model in memory: --verify full"
        return _OUT

    @property
    def note(self) -> str:
        found = self.coverage
        hang = f" {found.undecided} of {found.tokens} choices hang on rounding in the untouched model itself."
        driven = f" {found.driven} that no input reached were compared on rows that their router sends there."
        return (
            f"{found.reached} of {found.total} experts reached; {found.tried} inputs tried, {found.samples} used."
            + (driven if found.driven else "")
            + (hang if found.undecided else "")
        )

    def figures(self) -> tuple[Figure, ...]:
        blocks = tuple(
            Figure(
                load.place,
                {
                    "reached": f"{load.reached} of {len(load.assignments)}",
                    "not reached": ", ".join(map(str, load.missed)) or "–",
                    **{name: ", ".join(map(str, found)) for name, found in _driven(load) if found},
                },
                not load.missed and not load.wrong,
            )
            for load in self.coverage.loads
        )
        return blocks + tuple(Figure(name, {"reached": "no"}, False) for name in self.coverage.unused)

    def __str__(self) -> str:
        return str(self.coverage)


def _driven(load: ExpertLoad) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return ("driven directly", load.driven), ("wrong", load.wrong)


def _named(experts: tuple[int, ...]) -> str:
    return f"expert{'s' * (len(experts) > 1)} {', '.join(map(str, experts))}"
