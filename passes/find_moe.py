"""`find-moe`: a mixture in plain operators becomes one `moec::experts`, the router in front of one a `moec::route`."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from moec.dialect import Routing
from moec.pipeline.passes import Context, Pass
from moec.program.moe_call import EXPERTS, ROUTE, MoeCall
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.recognition.hand_written_experts import Experts
from moec.recognition.hand_written_mixtures import Mixture, find_mixtures
from moec.recognition.linear import value_of
from moec.recognition.router_region import NotARouter, find_region, is_routed, own_vector
from moec.recognition.routing_rule import identify

aten = torch.ops.aten
_ALL_RUN = "; all experts run for every token: each has a weight, and nothing chooses among them"


@dataclass(frozen=True)
class FindMoe(Pass):
    """Recognise mixtures and routers, in whatever way the model writes them.

    Mixtures are loops over experts, masks, dispatches and look-ups of weights. Routers take softmax, sigmoid or raw
    logits, and the top-k of them, with correction bias and groups; weights are renormalised, scaled or as they are.
    Both are found by structure and proven by value, so a name means nothing to them. What no `moec::route` and
    `moec::experts` can say stays as it is: right, only less fused. Weights of a router come out in float32 (or wider)
    even where the model rounded them to 16 bits.
    """

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of mixtures and routers that were replaced."""
        found = list(find_mixtures(program))
        new: dict[fx.Node, fx.Node] = {}  # of what a mixture reads that was another's result
        for written, mixture in found:
            if isinstance(mixture, Mixture):
                new[mixture.region.output] = self._gather(program, mixture, new)
            else:
                name, all_run = written.module or "its mixture", _ALL_RUN if written.runs_all else ""
                context.miss(written.selection, f"{name} stays as it is: {mixture}{all_run}")
        gathered = sum(isinstance(mixture, Mixture) for _, mixture in found)
        return gathered + sum(self._route(program, node, context) for node in program.nodes(EXPERTS))

    def _gather(self, program: Program, mixture: Mixture, others: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """Put the two operators in the place of a mixture; its nodes go when nothing reads them."""
        region, old = mixture.region, mixture.region.output
        x = others.get(region.x, region.x)
        dims = value_of(region.x).dim()
        with program.graph.inserting_before(old):
            logits = self._in_dims(program, old, region.logits.node, region.experts, dims)
            room = self._room(program, old, mixture)
            bias = None if region.bias is None else self._in_dims(program, region.bias, region.bias, region.experts, 1)
            weights, ids = self._chosen(program, logits, logits, bias, mixture.routing, room)
            rules = {**mixture.experts.activation.arguments(), "score_before": mixture.score_before}
            matrices = _matrices(program, mixture.experts, region.found.module or old.name)
            new = call_like(program, old, self.name, EXPERTS, x, ids, weights, *matrices, **rules)
        old.replace_all_uses_with(new)
        return new

    def _room(self, program: Program, old: fx.Node, mixture: Mixture) -> tuple[Any, dict[str, Any]]:
        """The capacity of a mixture's experts, and what belongs to it."""
        if (kept := mixture.region.kept) is None:
            return None, {}
        limit: Any = kept.limit
        if isinstance(limit, int):
            limit += kept.extra
        elif kept.extra:
            limit = call_like(program, limit, self.name, operator.add, limit, kept.extra)
        return limit, {"order": kept.order, "drop_first": mixture.rule.drop_first}

    def _route(self, program: Program, node: fx.Node, context: Context) -> bool:
        call = MoeCall(node)
        ids, weights = call.node_of("ids"), call.node_of("weights")
        if is_routed(ids):
            return False
        try:
            region = find_region(program, ids, weights)
            rule = identify(program, region)
        except NotARouter as reason:
            context.miss(node, f"its router stays as it is: {reason}")
            return False
        with program.graph.inserting_before(node):
            logits = self._in_dims(program, ids, region.logits, region.experts, value_of(ids).dim())
            bias = region.bias and own_vector(self._in_dims(program, ids, region.bias, region.experts, 1))
            new_weights, new_ids = self._chosen(program, ids, logits, bias, rule)
        call.replace(ids=new_ids, weights=new_weights)
        return True

    def _chosen(
        self, program: Program, old: fx.Node, logits: fx.Node, bias: fx.Node | None, rule: Routing,
        room: tuple[Any, dict[str, Any]] = (None, {}),
    ) -> tuple[fx.Node, fx.Node]:  # fmt: skip
        """Weights and ids of a `moec::route`."""
        given = (logits, bias) if room[0] is None else (logits, bias, room[0])
        chosen = call_like(program, old, self.name, ROUTE, *given, **rule.arguments(), **room[1])
        weights, ids = (call_like(program, old, self.name, operator.getitem, chosen, i) for i in (0, 1))
        return weights, ids

    def _in_dims(self, program: Program, old: fx.Node, node: fx.Node, experts: int, dims: int) -> fx.Node:
        """The node `[…, E]` in this number of dimensions."""
        if value_of(node).dim() == dims:
            return node
        return call_like(program, old, self.name, aten.reshape.default, node, [-1, experts][-dims:])


def _matrices(program: Program, experts: Experts, module: str) -> list[fx.Node | None]:
    """Nodes of the experts' weights, in the order of `moec::experts`."""
    tensors = {"w_in": experts.w_in, "w_out": experts.w_out, "b_in": experts.b_in, "b_out": experts.b_out}
    return [
        None if weight is None else program.read_weight(program.add_weight(f"{module}.{name}", weight))
        for name, weight in tensors.items()
    ]
