"""Check: images change what the untouched model says, so that a comparison shows an engine that does not see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.trial import Trial
from moec.shown import figure_of

TIMES = 10  # what may differ, at least


@dataclass(frozen=True)
class Sight(Check):
    """How far logits of the untouched model change when its images are others, in the input where they change least.

    Attributes:
        moved: max |d|/std of the logits, with the images in another order, or with other pixels.
        allowed: what an engine's logits may differ by.
    """

    moved: float
    allowed: float

    name: ClassVar[str] = "sight"
    title: ClassVar[str] = "What images change"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        """Nothing: `moec.proof.vision_language` makes it with the whole model."""
        return None

    @property
    def least(self) -> float:
        """What images have to change."""
        return TIMES * self.allowed

    def error(self) -> MoecError | None:
        if self.moved >= self.least:
            return None
        what = (
            f"other images change the untouched model's logits by max |d|/std {self.moved:.2g} only, where "
            f"{figure_of(self.least)} would show an engine that mixes them up"
        )
        fix = "compile it for text alone, if its images are of no use: --leave-out 'pixel_values*'"
        return MoecError("M104", what, "images", fix)

    def figures(self) -> tuple[Figure, ...]:
        figures = {"max|d|/std": f"{self.moved:.2e}", "at least": figure_of(self.least)}
        return (Figure("logits, with other images", figures, self.ok),)

    def __str__(self) -> str:
        return f"other images change the model's logits by max |d|/std {self.moved:.2g}"
