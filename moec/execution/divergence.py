"""How far one prediction of the next token is from another."""

from __future__ import annotations

import torch
from torch import Tensor


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities `[N, V]`, in nats: `[N]`, in their dtype. A token that p rules out costs
    nothing."""
    share = p.exp()
    return torch.where(share > 0, share * (p - q), 0.0).sum(-1).clamp(min=0)  # below 0 by rounding only
