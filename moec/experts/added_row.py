"""A router's row for an expert that is added to a mixture, whose other rows stay as they are: in closed form, from what
the router reads of the new expert's text and of the texts that the mixture is for.

A token goes to the new expert where its row says more than all others do. So the row is fitted to that: ridge
regression on the highest of the old logits, and a margin above it for tokens of the new text, below it for all others.
The fit is linear in the margin, which is the one number that is chosen by tokens that the row has not seen, as the
likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_STEPS = 60
_RANGE = (1e-2, 1e4)  # of the margin, in the unit of logits


@dataclass(frozen=True)
class AddedRow:
    """A fitted row.

    Attributes:
        weight: float32 `[H]`.
        right: the share of held-out tokens of the new text that have their highest logit there. kept: that of other
            texts' held-out tokens that have not, every text counting alike.
    """

    weight: Tensor
    right: float
    kept: float


@dataclass(frozen=True)
class Read:
    """What a router reads, `[T, H]` of each text: the new expert's, and the others."""

    new: Tensor
    others: Sequence[Tensor]


def fit_row(router: Tensor, text: Read, held_out: Read, ridge: float) -> AddedRow:
    """The row of an expert behind those of a router.

    Args:
        router: `[E, H]`, which stays. text: to fit to; the new text counts as much as all others together.
        held_out: what judges.
        ridge: added to the second moment, in units of its mean diagonal.
    """
    old = router.double()
    moment = torch.zeros(old.shape[1], old.shape[1], dtype=torch.float64)
    wanted = torch.zeros(old.shape[1], 2, dtype=torch.float64)
    for share, sign, x in _shares(text):
        rows = x.double()
        reached = (rows @ old.T).amax(-1)
        moment += share / len(rows) * (rows.T @ rows)
        wanted += share / len(rows) * (rows.T @ torch.stack([reached, torch.full_like(reached, sign)], 1))
    moment.diagonal().add_(max(ridge * float(moment.diagonal().mean()), 1e-30))
    level, direction = torch.linalg.solve(moment, wanted).unbind(1)
    row = (level + _margin(old, level, direction, held_out) * direction).float()
    right, *lost = (float(_goes(old, row, x).double().mean()) for x in (held_out.new, *held_out.others))
    return AddedRow(row, right, 1 - sum(lost) / len(lost))


def _shares(text: Read) -> list[tuple[float, float, Tensor]]:
    """Each text with how much it counts, and 1 for the new one, -1 for others."""
    count = len(text.others)
    return [(0.5, 1.0, text.new), *((0.5 / count, -1.0, x) for x in text.others)]


def _goes(old: Tensor, row: Tensor, x: Tensor) -> Tensor:
    """Which tokens go to the new expert."""
    return x.double() @ row.double() > (x.double() @ old.T).amax(-1)


def _margin(old: Tensor, level: Tensor, direction: Tensor, held_out: Read) -> float:
    """The margin for which it is likeliest that tokens go where their text says: the loss is convex in it, so that
    halving the range finds it."""
    known = []
    for share, sign, x in _shares(held_out):
        rows = x.double()
        ahead = rows @ level - torch.logsumexp(rows @ old.T, -1)
        known.append((share, sign, ahead, rows @ direction))
    low, high = (torch.tensor(end, dtype=torch.float64).log() for end in _RANGE)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        margin = float(middle.exp())
        slope = 0.0
        for share, sign, ahead, more in known:
            wrong = torch.sigmoid(-sign * (ahead + margin * more))  # how likely it is to go where it should not
            slope -= share * sign * float((wrong * more).mean())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(((low + high) / 2).exp())
