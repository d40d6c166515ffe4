"""`moec::attention`: scaled dot-product attention over grouped heads, as transformers' attention interface calls it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float = 0.0,
) -> Tensor:
    """The operator in plain PyTorch; see `attention`. Scores and their softmax are computed in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (key, value))
    shares = _shares(_scores(query, key, scale, softcap), mask, sinks, query.dtype)
    return (shares[..., : key.shape[2]].to(query.dtype) @ value).transpose(1, 2).contiguous()


def _scores(query: Tensor, key: Tensor, scale: float, softcap: float) -> Tensor:
    scores = (query @ key.transpose(-1, -2)).to(torch.promote_types(query.dtype, torch.float32)) * scale
    return torch.tanh(scores / softcap) * softcap if softcap else scores


def _shares(scores: Tensor, mask: Tensor | None, sinks: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`[B, N, S, T]`, with a last column for the sinks where there are any."""
    if mask is not None:
        lowest = torch.finfo(dtype).min  # finite: a row of padding that sees nothing stays a number
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        column = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    return scores.softmax(-1)


@torch.library.custom_op("moec::attention", mutates_args=())
def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, sinks: Tensor | None = None,
    *, scale: float, softcap: float = 0.0, causal: bool = False,
) -> Tensor:  # fmt: skip
    """Attention of S new tokens to T keys, T - S of them from a cache.

    Args:
        query: `[B, N, S, D]`. key: `[B, G, T, D]`. value: `[B, G, T, V]`; N is a multiple of G, head n reads key-value
            head `n // (N/G)`.
        mask: `[B or 1, N or 1, S, T]`; bool, true where a token may look, or floating, added to the scores. None:
            everywhere.
        sinks: `[N]`, one more score in each head's softmax that no value belongs to (gpt-oss).
        scale: of the scores. softcap: scores become `tanh(score / softcap) * softcap`, 0 for none (Gemma 2).
        causal: a promise that the mask lets no token look at a later one, so that a kernel may leave those out.

    Returns:
        `[B, S, N, V]` in query's dtype.
    """
    return attention_reference(query, key, value, mask, sinks, scale, softcap)


@attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, sinks: Tensor | None = None, **_rule: Any
) -> Tensor:
    if mask is not None and mask.dim() == 4 and mask.shape[1] not in (1, query.shape[1]):
        raise ValueError(f"a mask for {mask.shape[1]} heads does not fit {query.shape[1]} heads of queries")
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


@torch.library.custom_op("moec::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `attention` by query, key, value and sinks (empty without sinks), in float32 inside."""
    groups, wide = query.shape[1] // key.shape[1], torch.promote_types(query.dtype, torch.float32)
    q, k, v, g = (
        t.to(wide)
        for t in (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), grad.transpose(1, 2))
    )
    scores = _scores(q, k, scale, softcap)
    shares = _shares(scores, mask, sinks, query.dtype)
    seen = shares[..., : key.shape[2]]
    d_shares = g @ v.mT
    inner = (d_shares * seen).sum(-1, keepdim=True)
    d_scores = seen * (d_shares - inner)
    if mask is not None and mask.dtype == torch.bool:
        d_scores = d_scores.masked_fill(~mask, 0.0)
    if softcap:
        d_scores = d_scores * (1 - (scores / softcap).square())
    d_key, d_value = (
        t.reshape(t.shape[0], -1, groups, *t.shape[2:]).sum(2) for t in (d_scores.mT @ q * scale, seen.mT @ g)
    )
    d_sinks = -(shares[..., -1:] * inner).sum((0, 2, 3)).to(sinks.dtype) if sinks is not None else grad.new_empty(0)
    return (d_scores @ k * scale).to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), d_sinks


@attention_backward.register_fake
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = torch.empty_like
    return like(query), like(key), like(value), grad.new_empty(0) if sinks is None else like(sinks)


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.rule = keyword_only_inputs["scale"], keyword_only_inputs["softcap"]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, mask, sinks = ctx.saved_tensors
    d_query, d_key, d_value, d_sinks = torch.ops.moec.attention_backward(
        grad, query, key, value, mask, sinks, *ctx.rule
    )
    return d_query, d_key, d_value, None, d_sinks if sinks is not None else None


torch.library.register_autograd("moec::attention", _backward, setup_context=_setup)
