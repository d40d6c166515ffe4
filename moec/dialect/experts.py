"""`moec::experts`: the grouped GEMM over tokens that have been routed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect.activation import Activation


def experts_reference(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    expert: Callable[[int, Tensor], Tensor],
    count: int,
    score_before: bool = False,
) -> Tensor:
    """Run only the experts that some token chose, one after the other, and sum in float32.

    Args:
        x: tokens `[..., H]`. ids, weights: `[..., K]`.
        expert: `expert(e, rows)` maps rows `[N, H]` through expert e.
        count: number of experts E.
        score_before: multiply the rows by their weights before the expert instead of after it (Llama 4).
    """
    rows, flat_ids, flat_weights = x.reshape(-1, x.shape[-1]), ids.reshape(-1, ids.shape[-1]), weights.reshape(-1, ids.shape[-1])
    total = torch.zeros(rows.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for e in range(count):
        token, slot = torch.where(flat_ids == e)
        if token.numel() == 0:
            continue
        weight = flat_weights[token, slot, None]
        picked = rows[token]
        if score_before:
            result = expert(e, (picked * weight).to(x.dtype)).to(total.dtype)
        else:
            result = expert(e, picked) * weight.to(total.dtype)
        total = total.index_add(0, token, result.to(total.dtype))
    return total.to(x.dtype).reshape(x.shape)


def dense_expert(w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None, activation: Activation) -> Callable[[int, Tensor], Tensor]:
    """The function of one expert whose weights are in memory: linear, activation, linear."""

    def expert(e: int, rows: Tensor) -> Tensor:
        hidden = activation(F.linear(rows, w_in[e], None if b_in is None else b_in[e]))
        return F.linear(hidden, w_out[e], None if b_out is None else b_out[e])

    return expert


def _run(x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
    expert = dense_expert(w_in, w_out, b_in, b_out, Activation.of(kwargs))
    return experts_reference(x, ids, weights, expert, w_in.shape[0], kwargs["score_before"])


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
    score_before: bool = False,
) -> Tensor:
    """Feed each token to its experts and add up their weighted outputs.

    Args:
        x: `[..., H]`.
        ids: `[..., K]` int64 in [0, E). weights: `[..., K]`.
        w_in: `[E, F*I, H]`, F = 2 with gate rows before up rows when gated, else 1. b_in: `[E, F*I]`.
        w_out: `[E, H, I]`. b_out: `[E, H]`.
        activation, gated, alpha, beta, limit, clamp_after: see `Activation`.
        score_before: weights multiply the experts' input, not their output (Llama 4).

    Returns:
        `[..., H]` in x's dtype, summed in float32.
    """
    rule = Activation(activation, gated, alpha, beta, limit, clamp_after)
    y = experts_reference(x, ids, weights, dense_expert(w_in, w_out, b_in, b_out, rule), w_in.shape[0], score_before)
    return y.clone() if y is x else y


@experts.register_fake
def _(x: Tensor, ids: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, b_in: Tensor | None = None, b_out: Tensor | None = None, **_rule: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    x, ids, *rest = inputs
    ctx.save_for_backward(x, ids, *rest)
    ctx.kwargs = keyword_only_inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # recompute under autograd: the reference is the definition, so its derivative is the derivative
    x, ids, *rest = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in (x, *rest)]
        y = _run(leaves[0], ids, *leaves[1:], ctx.kwargs)  # type: ignore[arg-type]
    return scatter_gradients(y, grad, leaves, gap=1)


def scatter_gradients(y: Tensor, grad: Tensor, leaves: list[Tensor | None], gap: int | None = None) -> tuple[Tensor | None, ...]:
    """Gradients of `y` for the leaves that are there, None for the others; `gap` is the place of a non-differentiable input."""
    present = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(y, present, grad, allow_unused=True) if y.requires_grad else [None] * len(present))
    result: list[Tensor | None] = [None if t is None else next(found) for t in leaves]
    if gap is not None:
        result.insert(gap, None)
    return tuple(result)


torch.library.register_autograd("moec::experts", _backward, setup_context=_setup)
