"""Launching the router: its product, and the choice."""

from __future__ import annotations

import torch
from torch import Tensor

from moec.dialect import Routing
from moec.kernels.checks import check_route
from moec.kernels.starting import on_device_of, start, wide

_ROUTER_PROGRAMS = 128


def route(logits: Tensor, bias: Tensor | None, rule: Routing) -> tuple[Tensor, Tensor]:
    """`moec::route` in one kernel.

    Args:
        logits: `[..., E]` in float16, bfloat16 or float32. bias: `[E]`.

    Raises:
        MoecError: M212 for a device, dtype or shape that it does not take, M203 for a rule that doesn't fit E experts.
    """
    check_route(logits, bias, rule)
    return routed(logits.reshape(1, -1, logits.shape[-1]).contiguous(), None, bias, rule, logits.shape[:-1])


def routed(
    parts: Tensor, router_bias: Tensor | None, bias: Tensor | None, rule: Routing, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Weights and ids `[*shape, K]` from parts `[S, T, E]`, whose sum over S is the logits without the router's
    bias."""
    from moec.kernels.device.route import route_kernel

    splits, tokens, experts = parts.shape
    weights = parts.new_empty((*shape, rule.top_k), dtype=torch.float32)
    ids = parts.new_empty(weights.shape, dtype=torch.int64)
    if tokens:
        with on_device_of(parts):
            start(
                route_kernel, (tokens,), parts, *(None if b is None else b.contiguous() for b in (router_bias, bias)),
                tokens, rule.scale, rule.epsilon, rule.floor, weights, ids, EXPERTS=experts, K=rule.top_k,
                K_WIDE=wide(rule.top_k), PLACES_WIDE=wide(experts // rule.groups), GROUPS=rule.groups,
                GROUPS_WIDE=wide(rule.groups), TOP_GROUPS=rule.top_groups, GROUP_SCORE=rule.group_score,
                SCORE=rule.score, COMBINE=rule.combine, CLOSED_AS_ZERO=rule.closed_as_zero, HAS_ROUTER_BIAS=router_bias
                is not None, HAS_BIAS=bias is not None, BY_LOGITS=rule.combine == "softmax" and bias is None and
                rule.groups == 1, SPLITS=splits, FLOORED=bool(rule.floor), num_warps=1 if experts <= 256 else 4,
            )  # fmt: skip
    return weights, ids


def router_parts(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` in float32 as `[S, T, E]` to be summed over S: few tokens share out the inner dimension, so that
    all of the GPU reads.

    Args:
        x: `[T, H]`, rows may be strided. weight: `[E, H]` in a float dtype of its own.
    """
    from moec.kernels.device.logits import logits_kernel

    (tokens, hidden), experts = x.shape, weight.shape[0]
    rows, columns, depth = 16, 16, 128
    blocks, steps = -(-tokens // rows) * -(-experts // columns), -(-hidden // depth)
    splits = max(1, min(_ROUTER_PROGRAMS // max(blocks, 1), steps, 8))
    parts = torch.empty((splits, tokens, experts), dtype=torch.float32, device=x.device)
    exact = x.dtype != weight.dtype or x.dtype == torch.float32
    with on_device_of(x):
        start(
            logits_kernel, (-(-tokens // rows), -(-experts // columns), splits), x, weight.contiguous(), tokens,
            x.stride(0), parts, EXPERTS=experts, DEPTH=hidden, STEPS=-(-steps // splits), EXACT=exact, ROWS=rows,
            BLOCK_N=columns, BLOCK_K=depth, num_warps=4, num_stages=3,
        )  # fmt: skip
    return parts
