"""`find-moe`: the router in front of every `moec::experts` becomes one `moec::route`."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from moec.pipeline.passes import Context, Pass
from moec.program.moe_call import EXPERTS, ROUTE, MoeCall
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.recognition.linear import value_of
from moec.recognition.router_region import NotARouter, Region, find_region, is_routed, own_vector
from moec.recognition.routing_rule import identify

aten = torch.ops.aten


@dataclass(frozen=True)
class FindMoe(Pass):
    """Recognise routers: softmax, sigmoid or raw logits; top-k, with correction bias and groups; renormalised, scaled
    or as they are.

    A router is found by structure and proven by value, so a name means nothing to it. One that no `moec::route` can say
    stays as it is: right, only less fused. Weights come out in float32 (or wider) even where the model rounded them to
    16 bits.
    """

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of routers that were replaced."""
        return sum(self._route(program, node, context) for node in program.nodes(EXPERTS))

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
            logits = self._in_dims(program, region, region.logits, value_of(ids).dim())
            bias = None if region.bias is None else own_vector(self._in_dims(program, region, region.bias, 1))
            chosen = call_like(program, ids, self.name, ROUTE, logits, bias, **rule.arguments())
            new_ids, new_weights = (call_like(program, ids, self.name, operator.getitem, chosen, i) for i in (1, 0))
        call.replace(ids=new_ids, weights=new_weights)
        return True

    def _in_dims(self, program: Program, region: Region, node: fx.Node, dims: int) -> fx.Node:
        """The node `[…, E]` in this number of dimensions."""
        if value_of(node).dim() == dims:
            return node
        return call_like(program, region.ids, self.name, aten.reshape.default, node, [-1, region.experts][-dims:])
