"""What mixtures are tried on: tokens of all sizes, and logits in which no two tie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_NUDGE = 1e-10  # tells tied logits apart, and changes no weight by more than a tolerance


def uneven(x: Tensor, factors: Sequence[tuple[int, float]]) -> Tensor:
    """Tokens `[..., H]`, changed in place: every n-th is multiplied, as `factors` has it, by zero too. A bound on what
    goes in or comes out shows there."""
    rows = x.flatten(0, -2)
    for every, factor in factors:
        rows[every - 1 :: every] *= factor
    return x


def tie_breaks(logits: Tensor) -> Iterator[Tensor]:
    """Logits `[T, E]` as they are, then so that the first of experts that tie is chosen, then the last."""
    order = torch.arange(logits.shape[-1])
    for nudge in (0.0, -_NUDGE, _NUDGE):
        yield logits + nudge * order


def tie_breaks_of_scores(scores: Tensor) -> list[Tensor | None]:
    """What is added to scores `[T, E]` in the choice, so that the first of experts that tie is chosen, then the last.
    Nothing but where all tie: sigmoids of large logits are all 1; a maximum takes the first of them, a top-k any."""
    order = torch.arange(scores.shape[-1], dtype=scores.dtype)
    tied = bool((scores == scores[..., :1]).all())
    return [None, -_NUDGE * order, _NUDGE * order] if tied else [None]
