"""A router's scores as shares that sum to 1, whatever rule it follows."""

from __future__ import annotations

import torch
from torch import Tensor

from moec.dialect import Routing
from moec.dialect.routing import scores_of

SAMPLE = 256  # tokens by which a rule is told
_TOLERANCE = 0.02  # of a weight; 16 bits round to 0.4 %


def shares_of(logits: Tensor, score: str) -> Tensor:
    """Scores `[..., E]` of a router divided by their sum over all experts: softmax as it is, sigmoid and square roots
    of softplus scaled; raw logits (`identity`) by their softmax, since they may be negative."""
    if score == "identity":
        return logits.softmax(-1)
    scores = scores_of(logits, score)
    if score == "softmax":
        return scores
    return scores / scores.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def shares_by(logits: Tensor, rule: Routing) -> Tensor:
    """The same `[T, E]` by a rule, in float32."""
    return shares_of(logits.detach().flatten(0, -2).float(), rule.score)


def score_that_gives(logits: Tensor, ids: Tensor, weights: Tensor) -> str | None:
    """Which score explains the weights of chosen experts, up to one factor for all: `softmax`, `sigmoid`,
    `sqrt_softplus`, or None where none does: one chosen expert that always counts 1 tells nothing of the scores.

    Args:
        logits: `[T, E]`. ids, weights: `[T, K]`, of the chosen experts.
    """
    logits, ids, weights = logits[:SAMPLE].float(), ids[:SAMPLE], weights[:SAMPLE].float()
    for score in ("softmax", "sigmoid", "sqrt_softplus"):
        plain = scores_of(logits, score).gather(-1, ids)
        forms = [plain] if ids.shape[-1] == 1 else [plain, plain / plain.sum(-1, keepdim=True)]
        if any(_proportional(weights, form) for form in forms):
            return score
    return None


def _proportional(weights: Tensor, found: Tensor) -> bool:
    ratio = weights / found.clamp(min=1e-20)
    return bool((ratio / ratio.median() - 1).abs().max() < _TOLERANCE)
