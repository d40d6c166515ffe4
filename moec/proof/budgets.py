"""What approximate passes may cost, by the width of weights: a language model mean KL divergence and top-1 agreement,
any other model noise in its outputs.

Measured on a Llama of 7 M parameters that was trained on Python sources, groups of 64, on 192 tokens that it continued
itself (`moec.proof.own_text`), and, in brackets, on text that it was never shown:

| bits | mean KL, nats a token | top-1 or nearly |
|---|---|---|
| 8 | 0.00003 (0.0001) | 100 % |
| 4 | 0.0028 (0.0035) | 99 % |
| 3 | 0.012 | 96 % |
| 2 | 0.067 | 87 % |

The default divergence is 4 to 170 times that, since larger models may cost more: published mixtures of 8 to 100 B
parameters 0.01 to 0.09 nats at 4 bits, 0.2 to 0.6 at 2. So it lets the next narrower width of this small model pass;
that each matrix has its own width is held by value (`moec.proof.checks.weights`).

What is no language model has no distribution to compare; its largest single error says as little as a logit's. There
the root mean square of the error counts, in standard deviations of the untouched model's output (`max_rms`), and that
of the worst row, a token or a sentence (`max_row`): without it, a few rows that are another's would drown among right
ones. Measured on all-MiniLM-L6-v2 (23 M parameters), all matrices rounded to nearest in groups of 64: rms, worst row
on sentences, the same on the drawn tokens of a proof, which cost more, and cosine of mean-pooled sentences:

| bits | sentences | drawn tokens | allowed | cosine |
|---|---|---|---|---|
| 8 | 0.02, 0.03 | 0.03, 0.06 | 0.1, 0.2 | 0.9998 |
| 4 | 0.31, 0.58 | 0.40, 0.95 | 0.4, 1.1 | 0.964 |
| 3 | 0.56, 0.80 | 0.74, 1.31 | 0.7, 1.3 | 0.873 |
| 2 | 0.98, 1.3 | 1.3, 2.2 | 0.8, 1.3 | 0.570 |

At 8 bits there is room. At 4 and 3 the bounds are tight and refuse some right quantizations of an encoder: leave its
embeddings in 8 bits or refine scales (4 bits, groups of 32, `hqq`: 0.28, 0.57 on drawn tokens).

Numbers that have nothing to do with the right ones have an rms of about 1.4, zeros about 1. Of MiniLM's hidden states,
another token's row is 1.2 away (median; 0.6 to 2.9), so that a single wrong row may pass, but hardly several, the worst
of which counts. Nor is less than 1 a sign of being right: the deviation spans all channels, so answering each channel's
mean costs 0.8 to 0.9 in the hidden states, 0.1 to 0.6 in the pooled output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

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
            deviation of the untouched model's. max_row: the same of its worst row (a token, a sentence).
    """

    max_kl: float
    min_top1: float | None = None
    why: str = "--max-kl"
    max_rms: float = math.inf
    max_row: float = math.inf


_BY_WIDTH = {
    2: (0.3, 0.7, 0.8, 1.3),
    3: (0.1, 0.85, 0.7, 1.3),
    4: (0.05, 0.9, 0.4, 1.1),
    8: (0.005, 0.95, 0.1, 0.2),
}
_OTHERWISE = (0.2, 0.75, 0.5, 1.1)  # experts are dropped, or parts drawn anew: no width says what that may cost


def budget_of(history: Sequence[AppliedPass], max_kl: float | None = None) -> Budget:
    """The budget of all approximate passes together: what was asked for, else the default of the narrowest width that
    they put weights on, or of passes that do more than that; where there are both, the looser of each figure."""
    if max_kl is not None:
        return Budget(max_kl)
    widths = [bits for step in history for bits in step.widths]
    found = [_budget(_of_width(min(widths)), f"{min(widths)} bits")] if widths else []
    if any(step.contract == "approximate" and not step.widths for step in history):
        found.append(_budget(_OTHERWISE, "passes that do more than round weights"))
    return reduce(_looser, found) if found else _budget(_BY_WIDTH[8], "8 bits")


def _looser(one: Budget, other: Budget) -> Budget:
    """The looser of each figure, and where it comes from."""
    top1 = None if one.min_top1 is None or other.min_top1 is None else min(one.min_top1, other.min_top1)
    figures = max(one.max_kl, other.max_kl), top1, max(one.max_rms, other.max_rms), max(one.max_row, other.max_row)
    made = Budget(figures[0], figures[1], f"{one.why}, {other.why}", figures[2], figures[3])
    return next((b for b in (one, other) if replace(b, why=made.why) == made), made)


def _budget(allowed: tuple[float, float, float, float], why: str) -> Budget:
    max_kl, min_top1, max_rms, max_row = allowed
    return Budget(max_kl, min_top1, why, max_rms, max_row)


def _of_width(bits: int) -> tuple[float, float, float, float]:
    return _BY_WIDTH[max((b for b in _BY_WIDTH if b <= bits), default=min(_BY_WIDTH))]


class OverBudget(MoecError):
    """An error about the budget of approximate passes, for which settings that change less are a way out."""
