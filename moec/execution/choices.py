"""What a mixture-of-experts operator chose: ids and weights of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from moec.dialect import Routing, route_reference
from moec.execution.streaming import router_logits
from moec.program.moe_call import EXPERTS, MOE, ROUTE
from moec.weights.lazy import Weight


def choice(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """What a MoE operator chose: weights `[T, K]`, ids `[T, K]` and the number of experts."""
    if node.target is EXPERTS:
        ids, weights, count = args[1], args[2], args[3].shape[0]
    else:
        bias = args[3].load() if isinstance(args[3], Weight) else args[3]
        weights, ids = route_reference(router_logits(args[0], args[1], args[2]), bias, Routing.of(kwargs))
        count = args[4].shape[0]
    return weights.reshape(-1, ids.shape[-1]), ids.reshape(-1, ids.shape[-1]), count


def chosen(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The experts that a MoE operator gives each token to, bool `[T, E]`; one with a weight of 0 is none."""
    weights, ids, count = choice(node, args, kwargs)
    return torch.zeros(len(ids), count).scatter_add(-1, ids, weights.ne(0).float()) > 0


def logits_of(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | None, Routing] | None:
    """The router's logits `[..., E]`, correction bias and rule, where a node routes; None for any other node."""
    if node.target is ROUTE:
        logits, bias = args[0], args[1] if len(args) > 1 else kwargs.get("bias")
    elif node.target is MOE:
        logits, bias = router_logits(args[0], args[1], args[2]), args[3]
    else:
        return None
    return logits, bias.load() if isinstance(bias, Weight) else bias, Routing.of(kwargs)
