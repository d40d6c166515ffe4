"""What coarser weights cost a mixture of experts, split in two: the weights' own error, and the choices that it
changes.

A quantized model errs because its numbers are rounded, and because rounding sends tokens to other experts. Either part
alone is had by force: the quantized model on the untouched model's routes, and the untouched model on the quantized
model's (EAC-MoE, arXiv 2508.01625, table 1). Routes are experts and their weights, of every token in every block. What
the second part costs is what `calibrate-router` can win back. The parts need not add up to the whole.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from moec.execution.choices import choice
from moec.execution.divergence import divergence
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.program.decoder_signature import LOGITS, text_inputs
from moec.program.dialect_call import in_order, position
from moec.program.moe_call import EXPERTS, MOE, MoeCall, moe_nodes
from moec.program.program import Program
from moec.program.rewriting import call_like
from moec.program.signature import Sample
from moec.recognition.linear import value_of

aten, ops = torch.ops.aten, torch.ops.moec
_LOGITS_BYTES = 256 * 2**20  # of one program's logits that are held at a time

Routes = list[list[tuple[Tensor, Tensor]]]  # of each block, for each input: weights and ids `[T, K]`


@dataclass(frozen=True)
class ExpertShift:
    """Mean KL divergences from the untouched model, in nats a token.

    Attributes:
        tokens: how many were predicted.
        weights: of the changed weights on the untouched model's routes.
        routes: of the untouched weights on the changed model's routes.
        both: of the changed model as it is.
    """

    tokens: int
    weights: float
    routes: float
    both: float

    def __str__(self) -> str:
        return f"weights alone {self.weights:.3g}, changed choices alone {self.routes:.3g}, both {self.both:.3g}"


def measure_shift(captured: Program, program: Program, windows: Iterable[Tensor]) -> ExpertShift | None:
    """Run both programs on their own routes and on each other's.

    Args:
        captured, program: the untouched language model, and what passes made of it.
        windows: tokens, int64 `[B, S]`. As many are taken together as their logits have room; four runs read every
            weight for these.

    Returns:
        None where routes cannot be exchanged: without experts, or when passes made blocks or changed how many experts
            there are, or are chosen.
    """
    if not moe_nodes(captured) or _forms(captured) != _forms(program):
        return None
    untouched, changed, totals, tokens = unfused(captured), unfused(program), [0.0, 0.0, 0.0], 0
    for group in _groups(windows, _vocabulary(captured)):
        samples = [text_inputs(captured.inputs, ids) for ids in group]
        (want, routes), (got, moved) = _run(untouched, samples), _run(changed, samples)
        by_cause = _run(changed, samples, routes)[0], _run(untouched, samples, moved)[0], got
        totals = [total + _divergence(want, logits) for total, logits in zip(totals, by_cause, strict=True)]
        tokens += sum(ids.shape[0] * (ids.shape[1] - 1) for ids in group)
    return ExpertShift(tokens, *(total / tokens for total in totals)) if tokens else None


def unfused(program: Program) -> Program:
    """A copy in which every `moec::moe` is written out as a product, a `moec::route` and a `moec::experts`, so that its
    routes are values of the graph. That is the operator's definition, so the copy computes the same."""
    program = program.clone()
    for node in program.nodes(MOE):
        with program.graph.inserting_before(node):
            node.replace_all_uses_with(_written_out(program, node))
        program.graph.erase_node(node)
    program.finish()
    return program


def _written_out(program: Program, node: fx.Node) -> fx.Node:
    def call(target: object, *args: object, **kwargs: object) -> fx.Node:
        return call_like(program, node, "unfused", target, *args, **kwargs)

    block = MoeCall(node)
    exact = torch.promote_types(value_of(block.x).dtype, torch.float32)
    factors = (block.x, block.router, block.router_bias)
    logits = call(aten.linear.default, *(None if a is None else call(aten.to.dtype, a, exact) for a in factors))
    assert block.routing is not None
    chosen = call(ops.route.default, logits, block.selection_bias, **block.routing.arguments())
    ids, weights = (call(operator.getitem, chosen, output) for output in (1, 0))
    tensors = {"x": block.x, "ids": ids, "weights": weights} | block.expert_tensors()
    rest = {k: node.kwargs[k] for k in ("b_in", "b_out", "score_before") if k in node.kwargs}
    return call(ops.experts.default, *in_order(EXPERTS, tensors), **block.activation.arguments(), **rest)


def _forms(program: Program) -> list[tuple[int, int]]:
    """Of each block: how many experts it has, and how many it chooses."""
    return [_form(node) for node in moe_nodes(program)]


def _form(node: fx.Node) -> tuple[int, int]:
    return MoeCall(node).experts, MoeCall(node).top_k


def _vocabulary(program: Program) -> int:
    results = next(n for n in program.graph.nodes if n.op == "output").args[0]
    return int(value_of(results[program.outputs.index(LOGITS)]).shape[-1])


def _groups(windows: Iterable[Tensor], vocabulary: int) -> Iterator[list[Tensor]]:
    room, group = max(1, _LOGITS_BYTES // (4 * vocabulary)), list[Tensor]()
    for ids in windows:
        if group and sum(g.numel() for g in group) + ids.numel() > room:
            yield group
            group = []
        group.append(ids)
    if group:
        yield group


def _run(program: Program, samples: Sequence[Sample], forced: Routes | None = None) -> tuple[list[Tensor], Routes]:
    """Logits for each sample, and the routes that were taken; those that are forced, if there are any."""
    blocks, routes = moe_nodes(program), Routes()

    def visit(calls: OperatorCalls) -> None:
        if calls.node not in blocks:
            return
        if forced is not None:
            _force(calls, forced[len(routes)])
        routes.append(
            [choice(calls.node, args, named)[:2] for args, named in zip(calls.inputs, calls.named, strict=True)]
        )

    at = program.outputs.index(LOGITS)
    return [outputs[at] for outputs in run_in_lockstep(program, samples, visit)], routes


def _force(calls: OperatorCalls, routes: list[tuple[Tensor, Tensor]]) -> None:
    for name, taken in (("ids", [ids for _, ids in routes]), ("weights", [weights for weights, _ in routes])):
        place = position(calls.node.target, name)
        calls.replace_each(
            place, [new.to(own.dtype).reshape(own.shape) for new, own in zip(taken, calls.values(place), strict=True)]
        )


def _divergence(want: list[Tensor], got: list[Tensor]) -> float:
    """The sum over all predicted tokens, window by window in float64."""
    windows = (pair for batches in zip(want, got, strict=True) for pair in zip(*batches, strict=True))
    return sum(float(divergence(*(logits[:-1].double().log_softmax(-1) for logits in pair)).sum()) for pair in windows)
