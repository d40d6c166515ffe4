"""Check: each part of an engine of several graphs is proven alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.trial import Trial


@dataclass(frozen=True)
class ProvenPart:
    """The proof of a part. said: what was found, in a line; problem: what of it failed, empty where nothing did."""

    part: str
    said: str
    problem: str = ""
    code: str = "M101"
    fix: str = ""


@dataclass(frozen=True)
class ProvenParts(Check):
    """What the proofs of the parts found; the manifests in their folders have all of it."""

    parts: tuple[ProvenPart, ...]

    name: ClassVar[str] = "parts"
    title: ClassVar[str] = "Each part alone"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        """Nothing: `moec.proof.joint` makes it of the parts' own proofs."""
        return None

    def error(self) -> MoecError | None:
        wrong = next((p for p in self.parts if p.problem), None)
        if wrong is None and self.parts:
            return None
        if wrong is None:
            return MoecError("M101", "no part was proven", "the proof", "compile the engine again")
        return MoecError(wrong.code, f"the {wrong.part}: {wrong.problem}", f"part {wrong.part}", wrong.fix)

    def figures(self) -> tuple[Figure, ...]:
        found = tuple(Figure(p.part, {"found": p.problem or p.said}, not p.problem) for p in self.parts)
        return found or (Figure("none", {"found": "nothing was proven"}, False),)

    def __str__(self) -> str:
        return "; ".join(f"{p.part}: {p.problem or p.said}" for p in self.parts)
