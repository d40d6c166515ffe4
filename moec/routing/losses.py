"""Losses that keep routers in balance, each with its normalisation; none is multiplied by its coefficient.

| loss | where experts are chosen alike | where one takes all, K = 1 |
|---|---|---|
| `switch_loss` | 1 | E |
| `transformers_loss` | K | E |
| `sequence_loss` | 1 | E |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.errors import MoecError
from moec.routing.scores import shares_of


def switch_loss(logits: Tensor, top_k: int = 1, mask: Tensor | None = None) -> Tensor:
    """The load-balancing loss of one Switch layer: `E * sum_i f_i P_i` (Fedus et al. 2021, arXiv 2101.03961, eq. 4 to
    6), without its alpha (0.01 there).

    f_i is the share of choices that fall on expert i; it sums to 1, also for K above 1, where the paper has K = 1. P_i
    is the mean probability of expert i. So it is 1 where all experts are chosen alike, whatever E and K. Only P has a
    gradient. A model's loss is the sum over its layers.

    Args:
        logits: `[..., E]`, any float dtype; softmax is taken in float32.
        top_k: K. mask: of the logits' leading shape, 0 for tokens that do not count.

    Returns:
        float32 `[]`.

    Raises:
        MoecError: M201 unless 1 <= K <= E.
    """
    chosen, mean = _chosen_and_mean(logits, top_k, mask)
    return logits.shape[-1] * (chosen / top_k * mean).sum()


def transformers_loss(logits: Sequence[Tensor], top_k: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """The same as transformers' `load_balancing_loss_func` computes it. It differs from `switch_loss` in two ways.

    f_i is not divided by K, so the loss is K where all experts are chosen alike. And all layers are counted together
    before f and P are multiplied: layers that each favour another expert count as balanced. For one layer and K = 1 it
    is `switch_loss`.

    Args:
        logits: `[tokens, E]` a layer; layers of equal E and K are counted together, and their losses averaged.
        top_k: K of each layer.
        mask: `[B, S]`, 0 where a token is padding and does not count; another length of all tokens is not looked at.

    Returns:
        float32 `[]`.

    Raises:
        MoecError: M201 unless 1 <= K <= E, for no layer, and for other than one K a layer.
    """
    if len(logits) != len(top_k) or not logits:
        what = f"{len(logits)} layers of logits and {len(top_k)} numbers of experts a token"
        raise MoecError("M201", what, "transformers_loss", "give one top_k for each layer, and a layer at least")
    groups: dict[tuple[int, int], list[Tensor]] = {}
    for value, k in zip(logits, top_k, strict=True):
        groups.setdefault((value.shape[-1], k), []).append(value)
    losses = []
    for (experts, k), layers in groups.items():
        fits = mask is not None and mask.numel() == len(layers[0])
        counts = mask.flatten().repeat(len(layers)) if fits and mask is not None else None
        chosen, mean = _chosen_and_mean(torch.cat(layers), k, counts)
        losses.append(experts * (chosen * mean).sum())
    return torch.stack(losses).mean()


def sequence_loss(
    logits: Tensor, top_k: int, score: str = "sigmoid", ids: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """DeepSeek-V3's sequence-wise balance loss (arXiv 2412.19437, eq. 17 to 20), without its alpha (0.0001 there),
    averaged over sequences.

    For each sequence `sum_i f_i P_i`, with f_i = E / (K T) times how many of its T tokens choose expert i, and P_i the
    mean of its scores divided by their sum. It is 1 where the experts of a sequence are chosen alike.

    Args:
        logits: `[B, S, E]`, computed with in float32. top_k: K.
        score: `sigmoid` (V3) or `softmax` (V2), see `moec.dialect.Routing`.
        ids: `[B, S, K]`, the experts that were chosen, where a correction bias or groups took part in the choice; the K
            best scores when None, as eq. 18 has it.
        mask: `[B, S]`, 0 for padding; a sequence of padding alone does not count.

    Returns:
        float32 `[]`.

    Raises:
        MoecError: M201 unless 1 <= K <= E.
    """
    _require_choice(logits, top_k)
    shares = shares_of(logits.float(), score)
    chosen = F.one_hot(shares.topk(top_k, dim=-1).indices if ids is None else ids, shares.shape[-1]).sum(-2)
    counts = torch.ones_like(shares[..., :1]) if mask is None else mask.to(shares.dtype).unsqueeze(-1)
    tokens = counts.sum(-2)
    often, mean = ((v * counts).sum(-2) / tokens.clamp(min=1) for v in (chosen, shares))
    losses = shares.shape[-1] / top_k * (often * mean).sum(-1)
    return losses.sum() / (tokens > 0).sum().clamp(min=1)


def z_loss(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """ST-MoE's router z-loss: the mean over tokens of `logsumexp(logits)²` (Zoph et al. 2022, arXiv 2202.08906, eq. 5),
    without its coefficient (0.001 there). It keeps logits small. E equal logits of 0 give `ln(E)²`.

    Args:
        logits: `[..., E]`, computed with in float32. mask: of the leading shape, 0 for tokens that do not count.

    Returns:
        float32 `[]`.
    """
    squares = logits.float().logsumexp(-1).square()
    counts = torch.ones_like(squares) if mask is None else mask.to(squares.dtype)
    return (squares * counts).sum() / counts.sum().clamp(min=1)


@torch.no_grad()
def update_bias(bias: Tensor, counts: Tensor, rate: float = 1e-3) -> Tensor:
    """Loss-free balancing (Wang et al. 2024, arXiv 2408.15664, algorithm 1): after a step, raise the correction bias of
    experts with fewer tokens than the mean by `rate`, lower that of the others: `b_i += rate * sign(mean(c) - c_i)`.
    An expert with exactly the mean stays.

    Args:
        bias: `[E]`, changed in place: it is added to the scores for the choice, never to the weights.
        counts: `[E]`, choices of each expert in this step, summed over all devices.
        rate: 0.001 in the paper, for sigmoid scores.

    Returns:
        The bias.
    """
    counts = counts.to(bias.device, torch.float32)
    return bias.add_(rate * torch.sign(counts.mean() - counts).to(bias.dtype))


def _require_choice(logits: Tensor, top_k: int) -> None:
    experts = logits.shape[-1]
    if not 1 <= top_k <= experts:
        raise MoecError("M201", f"a token goes to {top_k} of {experts} experts", "top_k", f"give 1 to {experts}")


def _chosen_and_mean(logits: Tensor, top_k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Over tokens, `[E]` each: how many of the K choices of a token fall on an expert, and its probability."""
    _require_choice(logits, top_k)
    probabilities = logits.flatten(0, -2).float().softmax(-1)
    chosen = F.one_hot(probabilities.topk(top_k, dim=-1).indices, logits.shape[-1]).sum(1).to(probabilities.dtype)
    counts = torch.ones_like(probabilities[:, :1]) if mask is None else mask.flatten()[:, None].to(probabilities)
    total = counts.sum().clamp(min=1)
    return (chosen * counts).sum(0) / total, (probabilities * counts).sum(0) / total
