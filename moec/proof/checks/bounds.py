"""Check: a proof needs no bound that stands in the engine's own manifest.

Whoever edits an engine can edit its manifest. So a later proof takes its bounds from the command, or from moec itself;
one that a manifest records counts where it asks for more. A looser one is shown, and where the proof fails without it,
so does this check, which says how to accept it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.recorded_bound import RecordedBound
from moec.proof.trial import Trial


@dataclass(frozen=True)
class RecordedBounds(Check):
    """The looser bounds of a manifest. `failed`: what fails without them; empty when nothing does."""

    bounds: tuple[RecordedBound, ...]
    failed: str = ""

    name: ClassVar[str] = "bounds"
    title: ClassVar[str] = "Bounds that the manifest records"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        """Nothing by itself: `prove` makes it of what the other checks found."""
        return None

    def error(self) -> MoecError | None:
        if not self.failed:
            return None
        what = f"{self.failed}. The manifest's own bounds do not count: {'; '.join(map(str, self.bounds))}"
        flags = " ".join(b.flag for b in self.bounds if b.flag)
        accept = f"accept them: repeat them on the command, {flags}; or " if flags else ""
        return MoecError("M111", what, "moec.json: settings", f"{accept}compile the engine anew")

    @property
    def note(self) -> str:
        return "They are looser than moec's own, and were not used."

    def figures(self) -> tuple[Figure, ...]:
        ok = False if self.failed else None
        return tuple(Figure(b.name, {"recorded": b.recorded, "used": b.used}, ok) for b in self.bounds)

    def __str__(self) -> str:
        return f"looser in the manifest, and not used: {'; '.join(map(str, self.bounds))}"
