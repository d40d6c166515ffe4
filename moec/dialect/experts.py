"""`moec::experts`: the grouped GEMM over tokens that have been routed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect.activation import Activation
from moec.dialect.experts_backward import experts_backward
from moec.errors import MoecError


def experts_reference(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    expert: Callable[[int, Tensor], Tensor],
    count: int,
    score_before: bool = False,
) -> Tensor:
    """Sort the routed tokens by expert, run the experts that some token chose one after the other, and sum in float32.

    Args:
        x: tokens `[..., H]`. ids, weights: `[..., K]`.
        expert: `expert(e, rows)` maps rows `[N, H]` through expert e.
        count: number of experts E.
        score_before: multiply the rows by their weights before the expert instead of after it (Llama 4).

    Raises:
        MoecError: M212 for an id that is no expert.
    """
    check_ids(ids, count)
    chosen, top_k = ids.reshape(-1), ids.shape[-1]
    order = chosen.argsort(stable=True)
    scale = weights.reshape(-1, 1)[order]
    rows = x.reshape(-1, x.shape[-1])[order // top_k]
    if score_before:
        rows = (rows * scale).to(x.dtype)
    sizes = chosen.bincount(minlength=count).tolist()
    parts = [expert(e, part) if len(part) else part for e, part in enumerate(torch.split(rows, sizes))]
    result = torch.cat(parts).to(torch.promote_types(x.dtype, torch.float32))
    if not score_before:
        result = result * scale
    by_token = result[order.argsort()].reshape(len(order) // top_k, top_k, x.shape[-1])
    return by_token.sum(1).to(x.dtype).reshape(x.shape)


def check_ids(ids: Tensor, experts: int) -> None:
    """Raise M212 for an id outside of [0, experts). Waits for the device."""
    if ids.numel():
        low, high = (int(v) for v in torch.stack(torch.aminmax(ids)).tolist())
        if low < 0 or high >= experts:
            what, fix = (
                f"ids reach from {low} to {high}, experts from 0 to {experts - 1}",
                "pass ids as moec::route returns them",
            )
            raise MoecError("M212", what, "moec::experts", fix)


def dense_expert(
    w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None, activation: Activation
) -> Callable[[int, Tensor], Tensor]:
    """The function of one expert whose weights are in memory: linear, activation, linear."""

    def expert(e: int, rows: Tensor) -> Tensor:
        hidden = activation(F.linear(rows, w_in[e], None if b_in is None else b_in[e]))
        return F.linear(hidden, w_out[e], None if b_out is None else b_out[e])

    return expert


@torch.library.custom_op("moec::experts", mutates_args=())
def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
    *,
    activation: str = "silu",
    gated: bool = True,
    alpha: float = 1.0,
    beta: float = 0.0,
    limit: float = 0.0,
    clamp_after: bool = False,
    cap: float = 0.0,
    up_cap: float = 0.0,
    score_before: bool = False,
) -> Tensor:
    """Feed each token to its experts and add up their weighted outputs.

    Args:
        x: `[..., H]`.
        ids: `[..., K]` int64 in [0, E). weights: `[..., K]`. Elsewhere an id that is no expert raises M212; on CUDA,
            where looking at ids would wait for the device, that choice adds nothing to its token, and no memory outside
            of the experts is read.
        w_in: `[E, F*I, H]`, F = 2 with gate rows before up rows when gated, else 1. b_in: `[E, F*I]`.
        w_out: `[E, H, I]`. b_out: `[E, H]`.
        activation … up_cap: see `Activation`.
        score_before: weights multiply the experts' input, not their output (Llama 4).

    Returns:
        `[..., H]` in x's dtype, summed in float32.
    """
    rule = Activation(activation, gated, alpha, beta, limit, clamp_after, cap, up_cap)
    return experts_reference(x, ids, weights, dense_expert(w_in, w_out, b_in, b_out, rule), w_in.shape[0], score_before)


@experts.register_fake
def fake_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
    **_rule: Any,
) -> Tensor:
    """The shape and dtype of the result."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def set_up(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    """Keep for autograd what the derivative needs."""
    ctx.save_for_backward(*inputs)
    ctx.rule = json.dumps(keyword_only_inputs)


def pull_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the operator's arguments, by `experts_backward`."""
    saved, train_experts = ctx.saved_tensors, any(ctx.needs_input_grad[3:])
    d_x, d_weights, *d_experts = experts_backward(grad, *saved, ctx.rule, train_experts)
    own = iter(d_experts)
    return d_x, None, d_weights, *(next(own) if train_experts and t is not None else None for t in saved[3:])


torch.library.register_autograd("moec::experts", pull_back, setup_context=set_up)
