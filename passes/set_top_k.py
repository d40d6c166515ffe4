"""`set-top-k`: a mixture's tokens go to fewer experts."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, fx

from moec.errors import MoecError
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.experts.cut import MoeBlock, find_block
from moec.experts.fewer import Fewer, fewer
from moec.experts.residual import residual_sum
from moec.experts.spread import spread
from moec.pipeline.passes import Context, Contract, Pass, Plan
from moec.program.dialect_call import RouteCall, position
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.program.rewriting import call_like
from moec.recognition.linear import find_linears, value_of
from moec.recognition.router_region import NotARouter

aten, ops = torch.ops.aten, torch.ops.moec


@dataclass(frozen=True)
class SetTopK(Pass):
    """Send each token to its best `top_k` experts only: DS-MoE's way (arXiv 2404.05567), to train with many experts and
    to run few, and the cheapest way to make a mixture faster.

    Layers are changed in graph order, each on what the layers before it, already changed, bring to it. What is left of
    a block's output is scaled by the factor that brings it nearest to what all experts gave. The report holds the
    error of each layer for every number of experts.

    Attributes:
        top_k: experts a token; or a share below 1 of those that the model was made for, spread over the layers where it
            costs least.
        rescale: whether to scale.
    """

    contract: ClassVar[Contract] = "approximate"
    prepared_by: ClassVar[tuple[str, ...]] = ("find-moe",)

    top_k: int | float = 1
    rescale: bool = True

    def needs_calibration(self) -> bool:
        return self.rescale or isinstance(self.top_k, float)

    def without_data(self) -> Pass:
        """As many in every layer, and nothing is scaled."""
        return replace(self, rescale=False) if isinstance(self.top_k, int) else self

    def plan(self, program: Program, context: Context) -> Plan:
        """With a share the text decides which layers change."""
        self._check()
        if isinstance(self.top_k, float):
            return Plan(str(self), 0, len(moe_nodes(program)), program.clone())
        return super().plan(program, context)

    def milder(self) -> tuple[Pass, ...]:
        more = [0.75, 0.875] if isinstance(self.top_k, float) else [self.top_k + 1, 2 * self.top_k]
        return tuple(replace(self, top_k=k) for k in more if k > self.top_k)

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of blocks that changed. Raises M203 for a number that a block does not have, for routing
        inside one operator already, and for a router that was not recognised."""
        self._check()
        blocks = self._blocks(program, context)
        batches = list(context.require_calibration().batches(program.inputs)) if self.needs_calibration() else []
        counts = self._counts(program, blocks, batches)
        todo = {b.node: n for b, n in zip(blocks, counts, strict=True) if n < b.rule.top_k}
        found = _run(program, batches, blocks, todo, self.rescale)[0] if batches and todo else {}
        for block in (b for b in blocks if b.node in todo):
            _rewrite(program, block, todo[block.node], found[block.node].scale if found else 1.0, self.name)
        context.facts["blocks"] = [
            {"module": b.module, "top_k": todo[b.node], "of": b.rule.top_k, **(found[b.node].facts() if found else {})}
            for b in blocks
            if b.node in todo
        ]
        return len(todo)

    def _check(self) -> None:
        share = isinstance(self.top_k, float)
        if not (0 < self.top_k < 1 if share else type(self.top_k) is int and self.top_k >= 1):
            what = f"top_k={self.top_k} is no number of experts"
            raise MoecError(
                "M203",
                what,
                str(self),
                "write set-top-k(1) or more, or a share of those that the model has: set-top-k(0.5)",
            )

    def _blocks(self, program: Program, context: Context) -> list[MoeBlock]:
        linears, found = find_linears(program), list[MoeBlock]()
        for node in moe_nodes(program):
            where = module_path(node) or node.name
            if MoeCall(node).fused:
                what = "its routing is inside one operator already"
                raise MoecError("M203", what, where, "put set-top-k before fuse-moe")
            try:
                block = find_block(node, linears)
            except NotARouter as reason:
                known = next((m.reason for m in context.earlier if m.node == node.name), str(reason))
                raise MoecError("M203", f"its router stays as it is: {known}", where, "leave set-top-k out") from None
            if self.top_k > block.rule.top_k:
                what = f"a token goes to {block.rule.top_k} experts, fewer than {self.top_k}"
                raise MoecError("M203", what, where, f"set top_k to at most {block.rule.top_k}")
            if RouteCall(block.route).room is not None:
                what = "its experts have a capacity, which fewer choices would fill in another way"
                raise MoecError("M203", what, where, "leave set-top-k out")
            if any(other.route is block.route for other in found):
                context.miss(node, "another block reads the same choice")
                continue
            found.append(block)
        return found

    def _counts(self, program: Program, blocks: list[MoeBlock], batches: list[dict[str, Tensor]]) -> list[int]:
        if isinstance(self.top_k, int) or not blocks:
            return [int(self.top_k)] * len(blocks)
        found, sizes = _run(program, batches, blocks, {b.node: b.rule.top_k for b in blocks}, self.rescale)
        curves = [torch.tensor(found[b.node].errors) * (found[b.node].size / sizes[b.node]) for b in blocks]
        return spread(curves, 1, self.top_k)


def _run(
    program: Program,
    batches: list[dict[str, Tensor]],
    blocks: list[MoeBlock],
    counts: dict[fx.Node, int],
    rescale: bool,
) -> tuple[dict[fx.Node, Fewer], dict[fx.Node, float]]:
    """Run the text through the program, with so many experts in each block; what becomes of each, and how large the
    residual stream is that it joins, squared and summed."""
    rules = {b.node: b.rule for b in blocks}
    sums = {end: node for node in counts if (end := residual_sum(node)) is not None}
    found: dict[fx.Node, Fewer] = {}
    sizes: dict[fx.Node, float] = {}

    def visit(calls: OperatorCalls) -> None:
        count = counts.get(calls.node)
        if count is not None:
            found[calls.node] = result = fewer(calls.moe_calls(), count, rules[calls.node], rescale)
            for name, values in (("ids", result.ids), ("weights", result.weights)):
                calls.replace_each(position(calls.node.target, name), list(values))
            result.forget()
            sizes[calls.node] = result.size
        if calls.node in sums:
            values = [v for k in (0, 1) for v in calls.values(k) if torch.is_tensor(v)]
            sizes[sums[calls.node]] = max(sum(float(v.float().square().sum()) for v in values), 1e-30)

    last = next(node for node in reversed(program.graph.nodes) if node in sums or node in counts)
    run_in_lockstep(program, batches, visit, until=last)
    return found, sizes


def _rewrite(program: Program, block: MoeBlock, top_k: int, scale: float, by: str) -> None:
    """Another choice beside the old one, in the form that the experts read."""
    call, old = MoeCall(block.node), RouteCall(block.route)
    rule = replace(block.rule, top_k=top_k, scale=block.rule.scale * scale)
    put: Callable[..., fx.Node] = partial(call_like, program, block.route, by)
    with program.graph.inserting_before(block.node):
        chosen = put(ops.route.default, *old.tensors().values(), **{**old.kwargs, **rule.arguments()})
        made = {}
        for name, at in (("weights", 0), ("ids", 1)):
            before, now = value_of(call.node_of(name)), put(operator.getitem, chosen, at)
            if before.dim() != value_of(now).dim():
                now = put(aten.reshape.default, now, [-1, top_k])
            made[name] = now if before.dtype == value_of(now).dtype else put(aten.to.dtype, now, before.dtype)
    call.replace(**made)
