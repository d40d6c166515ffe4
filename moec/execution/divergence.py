"""How far one prediction of the next token is from another, and outputs of a model from others."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-30


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities `[…, V]`, in nats: `[…]`, in their dtype. A token that p rules out costs
    nothing; what is not a number stays so."""
    share = p.exp()
    return torch.where(share == 0, 0.0, share * (p - q)).sum(-1).clamp(min=0)  # below 0 by rounding only


def apart(wanted: Tensor, got: Tensor, logits: bool) -> float:
    """How far one output is from what is wanted: of logits `[…, V]` the mean divergence in nats a token, of anything
    else the squared error in units of the wanted values' square. Logits may be -inf: such a token is ruled out."""
    wanted, got = wanted.double(), got.double()
    if logits:
        return float(divergence(wanted.log_softmax(-1), got.log_softmax(-1)).mean())
    return float((got - wanted).square().sum() / wanted.square().sum().clamp(min=_TINY))
