"""The CUDA implementations of the dialect's operators: the kernels where they apply, else the reference, which runs
anywhere."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from moec.dialect import Activation, Capacity, Routing, moe_reference, route_reference
from moec.dialect.experts import dense_expert, experts_reference
from moec.kernels import launch


@lru_cache(None)
def has_triton() -> bool:
    """Whether Triton can be imported. PyTorch's CUDA builds for Linux bring it; elsewhere the references run."""
    return find_spec("triton") is not None


def route(
    logits: Tensor, bias: Tensor | None = None, capacity: int | None = None, counted: Tensor | None = None, **rule: Any
) -> tuple[Tensor, Tensor]:
    """`moec::route`. float64 stays float64, in the reference; so does a rule with a capacity."""
    routing, room = Routing.of(rule), Capacity.of(capacity, counted, rule)
    if logits.dtype == torch.float64 or room is not None or not has_triton():
        weights, ids = route_reference(logits, bias, routing, room)
        return weights.clone(), ids.clone()
    return launch.route(logits, bias, routing)


def experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
    **rule: Any,
) -> Tensor:
    """`moec::experts`. In float64, or without Triton, the reference, which waits for the device."""
    activation, before = Activation.of(rule), bool(rule.get("score_before", False))
    if x.dtype == torch.float64 or not has_triton():
        return experts_reference(
            x, ids, weights, dense_expert(w_in, w_out, b_in, b_out, activation), w_in.shape[0], before
        )
    return launch.experts(x, ids, weights, w_in, w_out, b_in, b_out, rule=activation, score_before=before)


def moe(
    x: Tensor,
    router_weight: Tensor,
    router_bias: Tensor | None,
    selection_bias: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
    **rule: Any,
) -> Tensor:
    """`moec::moe`. In float64, or without Triton, the reference."""
    routing, activation, before = Routing.of(rule), Activation.of(rule), bool(rule.get("score_before", False))
    if x.dtype == torch.float64 or not has_triton():
        return moe_reference(
            x, router_weight, router_bias, selection_bias, w_in, w_out, b_in, b_out, routing, activation, before
        )
    return launch.moe(
        x,
        router_weight,
        router_bias,
        selection_bias,
        w_in,
        w_out,
        b_in,
        b_out,
        routing=routing,
        rule=activation,
        score_before=before,
    )
