"""Check: in half precision, enough tokens could be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.decided_tokens import Decided
from moec.proof.evidence import compared
from moec.proof.subject import Subject
from moec.proof.trial import Trial


@dataclass(frozen=True)
class DecidedTokens(Check):
    """How many tokens were compared, where not all were: see `moec.proof.decided_tokens`."""

    decided: Decided

    name: ClassVar[str] = "decided tokens"
    title: ClassVar[str] = "Tokens that were compared"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        decided = trial.once(compared)[0].decided
        return None if decided is None else cls(decided)

    def error(self) -> MoecError | None:
        return self.decided.error("inputs that reach every expert")

    def turned_by(self, subject: Subject) -> tuple[str, ...]:
        return "tolerance", "target"

    def figures(self) -> tuple[Figure, ...]:
        return (Figure("all inputs", {"compared": self.decided.problem or str(self.decided)}, self.ok),)

    def __str__(self) -> str:
        return f"compared: {self.decided}" + (f"; {self.decided.problem}" if self.decided.problem else "")
