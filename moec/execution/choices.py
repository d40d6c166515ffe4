"""What a mixture-of-experts operator chose: ids and weights of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from moec.dialect import Capacity, Routing, route_reference
from moec.execution.streaming import router_logits
from moec.program.dialect_call import ROUTE, RouteCall
from moec.program.moe_call import MOE, MoeCall
from moec.weights.lazy import Weight


def choice(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    """What a MoE operator chose: weights `[T, K]`, ids `[T, K]` and the number of experts."""
    return choice_of(MoeCall.evaluated(node.target, args, kwargs))


def choice_of(call: MoeCall) -> tuple[Tensor, Tensor, int]:
    """The same of a call with values for arguments."""
    weights, ids = (call.weights, call.ids) if call.routing is None else route_reference(*routed(call, call.routing))
    return weights.reshape(-1, ids.shape[-1]), ids.reshape(-1, ids.shape[-1]), call.experts


def chosen(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The experts that a MoE operator gives each token to, bool `[T, E]`; one with a weight of 0 is none."""
    weights, ids, count = choice(node, args, kwargs)
    return torch.zeros(len(ids), count).scatter_add(-1, ids, weights.ne(0).float()) > 0


def logits_of(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | None, Routing] | None:
    """The router's logits `[..., E]`, correction bias and rule, where a node routes; None for any other node."""
    if node.target is ROUTE:
        call = RouteCall.evaluated(node.target, args, kwargs)
        return call.logits, _loaded(call.bias), call.routing
    block = MoeCall.evaluated(node.target, args, kwargs) if node.target is MOE else None
    return None if block is None or block.routing is None else routed(block, block.routing)


def room_of(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capacity | None:
    """How many choices an expert takes, where a node is a `moec::route` that says so."""
    return RouteCall.evaluated(node.target, args, kwargs).room if node.target is ROUTE else None


def routed(call: MoeCall, routing: Routing) -> tuple[Tensor, Tensor | None, Routing]:
    """What a `moec::moe` chooses by: its logits, its selection bias and its rule."""
    return router_logits(call.x, call.router, call.router_bias), _loaded(call.selection_bias), routing


def _loaded(bias: Tensor | Weight | None) -> Tensor | None:
    return bias.load() if isinstance(bias, Weight) else bias
