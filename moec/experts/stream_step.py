"""How much of the residual stream's drift a fitted matrix takes back, chosen by what that leaves on other text.

It is the most that does no harm there, not what leaves least: squared errors of a stream are those of its largest
directions, and what a model says hangs on small ones, too. On a Llama the whole step brought the logits nearer
than the step of least error, layer by layer; where a whole step is too much (MiniLM), the text that was held out
says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

SHARES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Step:
    """A share that was chosen.

    Attributes:
        taken: of the fit that takes back all that it can.
        stream: on text that nothing was fitted to, the mean squared distance of the residual stream behind the network
            from the untouched model's, in units of the mean square of what the untouched network says, for each share.
    """

    taken: float
    stream: dict[float, float]

    @property
    def left(self) -> float:
        """What is left of the distance."""
        return self.stream[self.taken]

    @property
    def before(self) -> float:
        """The distance where nothing is taken back."""
        return self.stream[0.0]


def best_step(apart: Tensor, back: Tensor, wanted: Tensor) -> Step:
    """The largest share that leaves the stream no further from the untouched model's than none; none without a
    token that judges, where nothing was fitted, and where numbers are no numbers.

    Args:
        apart: `[T, H]`, the untouched stream less the one of no step. back: `[T, H]`, what the whole step adds.
        wanted: `[T, H]`, what the untouched network says, the unit.
    """
    whole = float(wanted.square().sum()) or 1.0
    stream = {share: float((apart - share * back).square().sum()) / whole for share in SHARES}
    tells = len(apart) > 0 and math.isfinite(stream[1.0]) and bool(back.any())
    harmless = [share for share in SHARES if tells and stream[share] <= stream[0.0]]
    return Step(max(harmless, default=0.0), stream)
