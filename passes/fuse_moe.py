"""`fuse-moe`: a router's projection, its routing and the experts behind it become one `moec::moe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from moec.pipeline.passes import Context, Pass
from moec.program.dialect_call import RouteCall, in_order
from moec.program.moe_call import EXPERTS, MOE, MoeCall
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.recognition.linear import Linear, find_linears, value_of
from moec.recognition.router_region import handed_on, route_behind, scaled_linear_behind
from moec.weights import lazy as weights
from moec.weights.lazy import Weight

aten = torch.ops.aten


@dataclass(frozen=True)
class FuseMoe(Pass):
    """Fuse a router and its experts into one operator where both read the same rows.

    `linear -> moec::route -> moec::experts` becomes `moec::moe`. The logits are then computed in float32 whatever the
    model's dtype. Whatever else reads the logits, the ids or the weights (a load-balancing loss, an output) keeps its
    own nodes.
    """

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of blocks that were fused."""
        linears = find_linears(program)
        return sum(self._fuse(program, node, linears, context) for node in program.nodes(EXPERTS))

    def _fuse(self, program: Program, node: fx.Node, linears: dict[fx.Node, Linear], context: Context) -> bool:
        call = MoeCall(node)
        route = route_behind(call.ids, call.weights)
        projection = _projection(RouteCall(route).logits, linears) if route is not None else None
        if route is None or projection is None:
            context.miss(
                node,
                "its router is not a moec::route" if route is None else "its router's logits are not one linear layer",
            )
            return False
        if not _same_rows(call.node_of("x"), projection.x):
            context.miss(node, f"its router reads {projection.x.name}, its experts read {call.x}")
            return False
        routed = RouteCall(route)
        if routed.capacity is not None:
            context.miss(node, "experts have a capacity, and moec::moe has none")
            return False
        rules = {**routed.routing.arguments(), **call.activation.arguments(), "score_before": call.score_before}
        with program.graph.inserting_before(node):
            router, bias = _router(program, projection)
            tensors = {"x": call.x, "router_weight": router, "router_bias": bias, "selection_bias": routed.bias}
            arguments = in_order(MOE, tensors | call.expert_tensors())
            fused = call_like(program, node, self.name, MOE, *arguments, **rules)
        node.replace_all_uses_with(fused)
        program.graph.erase_node(node)
        return True


def _projection(logits: Any, linears: Mapping[fx.Node, Linear]) -> Linear | None:
    """The linear layer that logits come from, with the temperature that divides them."""
    scaled = scaled_linear_behind(logits, linears)
    if scaled is None or scaled[1] == 1:
        return None if scaled is None else scaled[0]
    linear, factor = scaled

    def times(weight: Weight) -> Weight:
        return weights.rowwise(f"times {factor}", lambda t: t.float() * factor, weight)

    bias = None if linear.bias is None else times(linear.bias)
    return replace(linear, node=handed_on(logits)[-1], weight=times(linear.weight), bias=bias)


def _same_rows(a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes hold the same rows in the same order, none of them rounded to a narrower dtype on the way."""
    left, right = handed_on(a), handed_on(b)
    common = next((n for n in left if n in right), None)
    if common is None:
        return False
    own = [*left[: left.index(common)], *right[: right.index(common)]]
    return all(value_of(n).dtype.itemsize >= value_of(common).dtype.itemsize for n in own)


def _router(program: Program, linear: Linear) -> tuple[fx.Node, fx.Node | None]:
    """Nodes of the router's weight `[E, H]` and bias `[E]`: the model's own where they stand in this layout, whatever
    they are cast to."""
    if linear.product is linear.node and linear.node.target == aten.linear.default:
        own = [handed_on(n)[-1] for n in linear.node.args[1:] if isinstance(n, fx.Node)]
        if all(n.op == "get_attr" for n in own):
            return (own[0], own[1] if len(own) > 1 else None)
    name = f"{linear.node.name}.router"
    weight = program.read_weight(program.add_weight(f"{name}.weight", linear.weight))
    return weight, None if linear.bias is None else program.read_weight(program.add_weight(f"{name}.bias", linear.bias))
