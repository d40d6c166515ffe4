"""`set-top-k`: a mixture's tokens go to fewer experts."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, fx

from moec.dialect import Routing
from moec.errors import MoecError
from moec.execution.divergence import apart, divergence
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.experts.cut import MoeBlock, find_block
from moec.experts.fewer import Fewer, fewer, with_fewer
from moec.experts.residual import residual_sum
from moec.experts.spread import spread
from moec.pipeline.passes import Context, Contract, Pass, Plan
from moec.program.decoder_signature import LOGITS
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
    """Send each token to its best `top_k` experts only.

    It is DS-MoE's way (arXiv 2404.05567), to train with many experts and to run few, and the cheapest way to make a
    mixture faster. Layers are changed in graph order, each on what the layers before it, already changed, bring to it.
    What is left of a block's output is scaled by the factor that brings it nearest to what all experts gave, and
    weights that are raw scores are renormalised where that brings it nearer. The report holds the error of each layer
    for every number of experts.

    Attributes:
        top_k: experts a token; or a share below 1 of those that the model was made for, spread over the layers where it
            costs least.
        rescale: whether to scale and renormalise; without, it is the model with another number in its config.
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
        if isinstance(self.top_k, float):
            return Plan(str(self), 0, len(moe_nodes(program)), program.clone())
        return super().plan(program, context)

    def milder(self) -> tuple[Pass, ...]:
        more = [0.75, 0.875] if isinstance(self.top_k, float) else [self.top_k + 1, 2 * self.top_k]
        return tuple(replace(self, top_k=k) for k in more if k > self.top_k)

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of blocks that changed. Raises M203 for a number that a block does not have, for routing
        inside one operator already, and for a router that was not recognised."""
        blocks = self._blocks(program, context)
        batches = list(context.require_calibration().batches(program.inputs)) if self.needs_calibration() else []
        counts = self._counts(program, blocks, batches)
        todo = {b.node: n for b, n in zip(blocks, counts, strict=True) if n < b.rule.top_k}
        found = self._found(program, batches, blocks, todo) if batches and todo else {}
        for block in (b for b in blocks if b.node in todo):
            made = found.get(block.node)
            _rewrite(program, block, made.rule if made else replace(block.rule, top_k=todo[block.node]), self.name)
        context.facts["blocks"] = [
            {
                "module": b.module,
                "top_k": todo[b.node],
                "of": b.rule.top_k,
                **(found[b.node].facts(b.rule) if found else {}),
            }
            for b in blocks
            if b.node in todo
        ]
        return len(todo)

    def _found(
        self, program: Program, batches: list[dict[str, Tensor]], blocks: list[MoeBlock], todo: dict[fx.Node, int]
    ) -> dict[fx.Node, Fewer]:
        """What becomes of each block; raw scores stay, or are renormalised in all of them, whichever leaves the whole
        model nearer to what it said of the text's first windows."""
        kept = {b.node: (todo[b.node], b.rule.combine) for b in blocks if b.node in todo}
        other = {b.node: "renormalize" for b in blocks if b.node in todo and _is_raw(b.rule)}
        first = _run(program, batches, blocks, kept, self.rescale)[0]
        if not other or not self.rescale:
            return first
        renormalised = {node: (count, other.get(node, combine)) for node, (count, combine) in kept.items()}
        second = _run(program, batches, blocks, renormalised, self.rescale)[0]
        rules = {b.node: b.rule for b in blocks}
        whole, *tried = (_said(program, batches[:1], rules, found) for found in ({}, first, second))
        return min((first, second), key=lambda found: _apart(whole, tried[found is second]))

    def check_settings(self) -> None:
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
                kept = f"its router stays as it is: {reason}"
                known = next((m.reason for m in context.earlier if m.node == node.name), kept)
                raise MoecError("M203", known, where, "leave set-top-k out") from None
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
        kept = {b.node: (b.rule.top_k, b.rule.combine) for b in blocks}
        found, sizes = _run(program, batches, blocks, kept, self.rescale)
        curves = [torch.tensor(found[b.node].errors) * (found[b.node].size / sizes[b.node]) for b in blocks]
        return spread(curves, 1, self.top_k)


def _is_raw(rule: Routing) -> bool:
    """Whether weights are raw scores, of which fewer add up to less."""
    return rule.combine == "scores" and rule.score in ("softmax", "sigmoid")


def _run(
    program: Program,
    batches: list[dict[str, Tensor]],
    blocks: list[MoeBlock],
    wanted: dict[fx.Node, tuple[int, str]],
    rescale: bool,
) -> tuple[dict[fx.Node, Fewer], dict[fx.Node, float]]:
    """Run the text through the program, with so many experts and such weights in each block; what becomes of each, and
    how large the residual stream is that it joins, squared and summed."""
    rules = {b.node: b.rule for b in blocks}
    sums = {end: node for node in wanted if (end := residual_sum(node)) is not None}
    found: dict[fx.Node, Fewer] = {}
    sizes: dict[fx.Node, float] = {}

    def visit(calls: OperatorCalls) -> None:
        if calls.node in wanted:
            count, combine = wanted[calls.node]
            found[calls.node] = result = fewer(calls.moe_calls(), count, rules[calls.node], combine, rescale)
            _choose(calls, rules[calls.node], result.rule)
            sizes[calls.node] = result.size
        if calls.node in sums:
            values = [v for k in (0, 1) for v in calls.values(k) if torch.is_tensor(v)]
            sizes[sums[calls.node]] = max(sum(float(v.float().square().sum()) for v in values), 1e-30)

    last = next(node for node in reversed(program.graph.nodes) if node in sums or node in wanted)
    run_in_lockstep(program, batches, visit, until=last)
    return found, sizes


def _choose(calls: OperatorCalls, before: Routing, now: Routing) -> None:
    """Compute a block with what another rule leaves of its choice."""
    made = [with_fewer(call, now.top_k, before, now.combine, now.scale) for call in calls.moe_calls()]
    for name in ("ids", "weights"):
        calls.replace_each(position(calls.node.target, name), [m[name] for m in made])


def _said(
    program: Program, batches: list[dict[str, Tensor]], rules: dict[fx.Node, Routing], found: dict[fx.Node, Fewer]
) -> list[dict[str, Tensor]]:
    """The outputs with these rules."""

    def visit(calls: OperatorCalls) -> None:
        if calls.node in found:
            _choose(calls, rules[calls.node], found[calls.node].rule)

    return [dict(zip(program.outputs, values, strict=True)) for values in run_in_lockstep(program, batches, visit)]


def _apart(whole: list[dict[str, Tensor]], found: list[dict[str, Tensor]]) -> float:
    """How far outputs are from others: the divergence of the next token where there are logits, summed over tokens,
    else the squared error of each floating-point output in units of its square, summed."""
    pairs = [(w[name].float(), f[name].float()) for w, f in zip(whole, found, strict=True) for name in _judged(w)]
    if LOGITS in whole[0]:
        return sum(float(divergence(w.log_softmax(-1), f.log_softmax(-1)).sum()) for w, f in pairs)
    return sum(apart(w, f, logits=False) for w, f in pairs)


def _judged(outputs: dict[str, Tensor]) -> list[str]:
    return [LOGITS] if LOGITS in outputs else [name for name, value in outputs.items() if value.is_floating_point()]


def _rewrite(program: Program, block: MoeBlock, rule: Routing, by: str) -> None:
    """Another choice beside the old one, in the form that the experts read."""
    call, old = MoeCall(block.node), RouteCall(block.route)
    put: Callable[..., fx.Node] = partial(call_like, program, block.route, by)
    with program.graph.inserting_before(block.node):
        chosen = put(ops.route.default, *old.tensors().values(), **{**old.kwargs, **rule.arguments()})
        made = {}
        for name, at in (("weights", 0), ("ids", 1)):
            before, now = value_of(call.node_of(name)), put(operator.getitem, chosen, at)
            if before.dim() != value_of(now).dim():
                now = put(aten.reshape.default, now, [-1, rule.top_k])
            made[name] = now if before.dtype == value_of(now).dtype else put(aten.to.dtype, now, before.dtype)
    call.replace(**made)
