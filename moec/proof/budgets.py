"""What approximate passes may cost, by the width of weights: a language model mean KL divergence and top-1 agreement,
any other model noise in its outputs.

Each default lies well above what a right quantization costs, and below what the next narrower width does. Measured on
a Llama of 7 M parameters that was trained on Python sources, groups of 64, on 192 tokens that it continued itself
(`moec.proof.own_text`), and, in brackets, on text that it was never shown:

| bits | mean KL, nats a token | top-1 or nearly |
|---|---|---|
| 8 | 0.00003 (0.0001) | 100 % |
| 4 | 0.0028 (0.0035) | 99 % |
| 3 | 0.012 | 96 % |
| 2 | 0.067 | 87 % |

What is no language model has no distribution to compare; its largest single error says as little as a logit's. There
the root mean square of the error counts, in standard deviations of the untouched model's output (`max_rms`). Measured
on all-MiniLM-L6-v2 (23 M parameters), all matrices rounded in groups of 64, with the cosine of mean-pooled sentences:
8 bits 0.03 (0.9998), 4 bits 0.30 (0.964), 3 bits 0.61 (0.873), 2 bits 1.2 (0.570). What says nothing has 1.

Published mixtures of 8 to 100 B parameters cost 0.01 to 0.09 nats at 4 bits, 0.2 to 0.6 at 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moec.errors import MoecError
from moec.program.program import AppliedPass


@dataclass(frozen=True)
class Budget:
    """What is allowed.

    Attributes:
        max_kl: of the mean KL divergence to the untouched model, in nats a token.
        min_top1: of the share of tokens for which both find the same token the likeliest, or the untouched model holds
            them for nearly as likely; None where only the divergence counts.
        why: where it comes from, in words.
        max_rms: of a model that is no language model: what passes may add to an output, as rms over the standard
            deviation of the untouched model's.
    """

    max_kl: float
    min_top1: float | None = None
    why: str = "--max-kl"
    max_rms: float = math.inf


_BY_WIDTH = {2: (0.3, 0.7, 0.8), 3: (0.1, 0.85, 0.7), 4: (0.05, 0.9, 0.4), 8: (0.005, 0.95, 0.1)}
_OTHERWISE = (0.2, 0.75, 0.5)  # experts are dropped, or parts drawn anew: no width says what that may cost


def budget_of(history: Sequence[AppliedPass], max_kl: float | None = None) -> Budget:
    """The budget of all approximate passes together: what was asked for, else the default of the narrowest width that
    they put weights on, or of passes that do more than that, whichever allows more."""
    if max_kl is not None:
        return Budget(max_kl)
    widths = [bits for step in history for bits in step.widths]
    found = [_budget(_of_width(min(widths)), f"{min(widths)} bits")] if widths else []
    if any(step.contract == "approximate" and not step.widths for step in history):
        found.append(_budget(_OTHERWISE, "passes that do more than round weights"))
    return max(found, key=lambda b: b.max_kl, default=_budget(_BY_WIDTH[8], "8 bits"))


def _budget(allowed: tuple[float, float, float], why: str) -> Budget:
    max_kl, min_top1, max_rms = allowed
    return Budget(max_kl, min_top1, why, max_rms)


def _of_width(bits: int) -> tuple[float, float, float]:
    return _BY_WIDTH[max((b for b in _BY_WIDTH if b <= bits), default=min(_BY_WIDTH))]


class OverBudget(MoecError):
    """An error about the budget of approximate passes, for which settings that change less are a way out."""
