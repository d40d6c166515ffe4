"""A router that knows from whose text a token is: fitted in closed form to what a network reads of each text.

Ridge regression on the texts' labels: the rows are the mean inputs of each text, whitened by the second moment of all
texts together, every text counting alike. That is the direction of linear discriminant analysis, and it has no bias, so
that the router is one that every mixture's architecture has. A single factor, fitted on tokens that the rows have not
seen, makes of the logits probabilities, by which outputs are mixed where a token takes several experts.

Hidden states of prompts (mergekit's gates) are neither whitened nor what the router reads, which is behind a norm. DUME
(arXiv 2603.29765) fits by ridge regression, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_STEPS = 60
_RANGE = (1e-2, 1e4)  # of the factor


@dataclass(frozen=True)
class MergedRouter:
    """A fitted router.

    Attributes:
        weight: float32 `[E, H]`.
        confusion: float64 `[E, E]`, for held-out tokens of the text of each row, the share that goes to each expert.
    """

    weight: Tensor
    confusion: Tensor

    @property
    def right(self) -> float:
        """The share of held-out tokens that go to the expert of their text, every text counting alike."""
        return float(self.confusion.diagonal().mean())


def fit_router(texts: Sequence[Tensor], held_out: Sequence[Tensor], ridge: float) -> MergedRouter:
    """The router for experts in the order of their texts.

    Args:
        texts: for each expert `[T, H]`, what the network reads of its text. held_out: the same, of other tokens.
        ridge: added to the second moment, in units of its mean diagonal.
    """
    means = torch.stack([x.double().mean(0) for x in texts])
    moment = sum((x.double().T @ x.double() / len(x) for x in texts), torch.zeros(()).double()) / len(texts)
    moment.diagonal().add_(max(ridge * float(moment.diagonal().mean()), 1e-30))
    rows: Tensor = torch.linalg.solve(moment, means.T).T / len(texts)
    rows = rows - rows.mean(0)  # what all have in common moves no choice
    weight = (rows * _factor(rows, held_out)).float()
    return MergedRouter(weight, confusion(weight, held_out))


def confusion(weight: Tensor, held_out: Sequence[Tensor]) -> Tensor:
    """For tokens of each text, the share that has its highest logit at each expert: float64 `[texts, E]`."""
    chosen = [(x.float() @ weight.T).argmax(-1) for x in held_out]
    return torch.stack([torch.bincount(c, minlength=len(weight)).double() / max(1, len(c)) for c in chosen])


def _factor(rows: Tensor, held_out: Sequence[Tensor]) -> float:
    """What the logits are multiplied by so that their softmax is the likeliest: the loss is convex in it, so that
    halving the range finds it."""
    logits = [x.double() @ rows.T for x in held_out]
    low, high = (torch.tensor(end, dtype=torch.float64).log() for end in _RANGE)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(logits, float(middle.exp())) < 0 else (low, middle)
    return float(((low + high) / 2).exp())


def _slope(logits: Sequence[Tensor], factor: float) -> float:
    """The derivative, by the factor, of the mean cross-entropy with the texts' labels."""
    found = 0.0
    for label, values in enumerate(logits):
        expected = (F.softmax(values * factor, -1) * values).sum(-1)
        found += float((expected - values[:, label]).mean())
    return found
