"""How much of the residual stream's drift a fitted matrix takes back, chosen by what that leaves on other text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

STEPS = (0.0, 0.5, 1.0)  # shares of the fit that takes all of the drift back


@dataclass(frozen=True)
class Step:
    """A share that was chosen.

    Attributes:
        taken: one of `STEPS`. stream: on text that nothing was fitted to, the mean squared distance of the residual
            stream behind the network from the untouched model's, in units of the mean square of what the untouched
            network says, for each of `STEPS`.
    """

    taken: float
    stream: tuple[float, ...]

    @property
    def left(self) -> float:
        """What is left of the distance."""
        return self.stream[STEPS.index(self.taken)]


def best_step(apart: Tensor, back: Tensor, wanted: Tensor) -> Step:
    """The share that leaves the stream nearest to the untouched model's; the smaller one where both leave the same.

    Args:
        apart: `[T, H]`, the untouched stream less the one of no step. back: `[T, H]`, what the whole step adds.
        wanted: `[T, H]`, what the untouched network says, the unit.
    """
    whole = float(wanted.square().sum()) or 1.0
    stream = tuple(float((apart - step * back).square().sum()) / whole for step in STEPS)
    return Step(STEPS[stream.index(min(stream))], stream)
