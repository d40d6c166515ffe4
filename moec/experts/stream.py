"""The residual stream behind a network: what the network's output is added to, and how far that has moved away from
what it is in the untouched model.

A network that is cut or merged changes the stream for all that follow. One that is fitted to the untouched model's
stream, in place of its own old output, takes back what those before it have moved. That needs the stream of the
untouched program, which runs beside: both stand at the same place, so that what one layer needs is held and no more.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from moec.execution.lockstep import Lockstep, OperatorCalls, joined
from moec.program.program import Program
from moec.recognition.linear import passes_through, value_of

aten = torch.ops.aten
_BY_ROWS = (  # a row of their result is made of that row of what they read first, beside what is pointwise
    aten.layer_norm.default,
    aten.rms_norm.default,
    aten.native_layer_norm.default,
    aten.linear.default,
)
_OVER = (aten.mean.dim, aten.var.correction, aten.sum.dim_IntList)  # so do these along the last dimension


@dataclass(frozen=True)
class Stream:
    """Where a network joins the residual stream.

    Attributes:
        total: the last addition. others: what is added to the network's output there and before, without it.
    """

    total: fx.Node
    others: tuple[fx.Node, ...]


def stream_of(output: fx.Node, before: fx.Node) -> Stream | str:
    """What a network's output is added to; in words why that says nothing of it.

    A block whose attention stands beside the network (GPT-J) adds both. A norm or a factor between the network and the
    sum (Gemma 2) makes the sum another function of the output.

    That it is the residual stream is seen by the graph: one of the values that are added is the very one that the
    network reads, as it is or behind a norm. Tensors of the same size are many.

    Args:
        output: of the network. before: the operator where the network is fitted; what is added has to be known there.
    """
    order = {node: k for k, node in enumerate(output.graph.nodes)}
    node, total, others = output, None, list[fx.Node]()
    while len(node.users) == 1:
        following = next(iter(node.users))
        added = following.target is aten.add.Tensor and len(following.all_input_nodes) == 2 and not following.kwargs
        if added:
            (other,) = (n for n in following.all_input_nodes if n is not node)
            if not _sizes(node) == _sizes(other) == _sizes(following):  # each row to the one beside it
                break
            others.append(other)
            total = following
        elif following.op != "call_function" or not passes_through(following):
            break
        node = following
    if total is None:
        return "its output is not added to a residual stream as it is"
    if any(order[other] >= order[before] for other in others):
        return "what is added to its output is computed behind it"
    if not _is_made_of(before, {_as_it_is(other) for other in others}):
        return "what its output is added to is not what it reads"
    return Stream(total, tuple(others))


def _sizes(node: fx.Node) -> list[str]:
    """A value's shape; symbolic sizes as text, since comparing them would add guards to the capture's."""
    return [str(size) for size in value_of(node).shape]


def _as_it_is(node: fx.Node) -> fx.Node:
    """The value that a node hands on row by row."""
    while node.op == "call_function" and passes_through(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _is_made_of(node: fx.Node, values: set[fx.Node]) -> bool:
    """Whether each row of a value is a function of the same row of one of these."""
    todo, seen = [node], {node}
    while todo:
        node = todo.pop()
        if node in values:
            return True
        new = [n for n in _by_rows(node) if n not in seen]
        todo, seen = todo + new, seen | set(new)
    return False


def _by_rows(node: fx.Node) -> list[fx.Node]:
    """What a value is made of row by row."""
    if node.op != "call_function":
        return []
    if passes_through(node) or node.target in _BY_ROWS or node.target is operator.getitem or _is_over_the_last(node):
        return [n for n in node.args[:1] if isinstance(n, fx.Node)]
    pointwise = isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
    return node.all_input_nodes if pointwise else []


def _is_over_the_last(node: fx.Node) -> bool:
    return node.target in _OVER and list(node.args[1]) in ([-1], [value_of(node.args[0]).dim() - 1])  # type: ignore


class UntouchedStream:
    """A program as it was, which runs beside the one that is changed.

    Args:
        program: the untouched one; nodes have the names that they have in the other. inputs: the same as the other's.
    """

    def __init__(self, program: Program, inputs: Sequence[Mapping[str, Tensor]]) -> None:
        self._run = Lockstep(program, inputs)
        self._nodes = {node.name: node for node in program.graph.nodes}
        self._order = {name: k for k, name in enumerate(self._nodes)}
        self._followed = -1

    def follow(self, stream: Stream | str) -> Stream | str:
        """The same stream, if it can be reached behind those that were followed before; else why not."""
        if isinstance(stream, str):
            return stream
        at = self._order[stream.total.name]
        if at <= self._followed:
            return "its output joins the residual stream before another network's that is fitted earlier"
        self._followed = at
        return stream

    def at(self, stream: Stream, every: int = 1) -> Tensor:
        """The stream behind a network, `[T, H]` float32 of all inputs' tokens, or of every one that is so many behind
        the last. Streams are asked for in the order in which they were followed."""
        reached = self._run.reach(self._nodes[stream.total.name])
        return joined(reached.values(0), every).float().add_(joined(reached.values(1), every))


def without_network(stream: Stream, calls: OperatorCalls, every: int = 1) -> Tensor:
    """The stream behind a network but for what the network says, `[T, H]` float32 of the same tokens.

    Args:
        calls: in the program that is changed, of the operator where the network is fitted. every: see `at`.
    """
    first, *others = stream.others
    total = joined(calls.earlier(first), every).float()
    for other in others:
        total += joined(calls.earlier(other), every)
    return total
