"""Routers of a captured graph: the piece between router logits and the ids and weights that a `moec::experts` node
takes.

Where the piece begins is read from its structure: the ids come from a selection (top-k), the selection from scores, the
scores from the logits. What it computes is found by value, in `routing_rule`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from moec.program.dialect_call import ROUTE
from moec.program.functional import is_in_place, is_view
from moec.program.program import Program
from moec.recognition.interpret import inputs_of
from moec.recognition.linear import Linear, passes_through, value_of

aten = torch.ops.aten
SELECTIONS = (aten.topk.default, aten.max.dim, aten.argmax.default)
SCORES = (aten.softmax.int, aten._softmax.default, aten.sigmoid.default, aten.softplus.default)
# what may stand between scores and selection: a correction bias, masks of groups, a change of form or dtype
_CHOICES = (
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.where.self,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.sqrt.default,
)
_COPIES = (aten.clone.default, aten.dropout.default, aten.detach.default, aten.contiguous.default)
_SCALES = (aten.div.Tensor, aten.div.Scalar, aten.mul.Tensor, aten.mul.Scalar)
_REGION_LIMIT = 100


class NotARouter(Exception):  # not an error: the router stays as it is
    """Why a piece of graph is not taken for a router; its text is for the user."""


@dataclass(frozen=True)
class Region:
    """A router's nodes.

    Attributes:
        ids, weights: what the experts take, `[..., K]`.
        selection: the node that chooses the experts.
        logits: what everything starts from, `[..., E]`. bias: the one constant `[E]` that takes part, or None.
        nodes: the nodes between them in graph order, with `ids` and `weights`, without `logits` and `bias`.
    """

    ids: fx.Node
    weights: fx.Node
    selection: fx.Node
    logits: fx.Node
    bias: fx.Node | None
    nodes: tuple[fx.Node, ...]

    @property
    def rule_nodes(self) -> tuple[fx.Node, ...]:
        """All of them: experts are not among them."""
        return self.nodes

    @property
    def experts(self) -> int:
        """E, how many there are to choose from."""
        return int(value_of(self.logits).shape[-1])

    @property
    def top_k(self) -> int:
        """K, how many are chosen."""
        return int(value_of(self.ids).shape[-1])


def find_region(program: Program, ids: fx.Node, weights: fx.Node) -> Region:
    """The router that `ids` and `weights` come from. Raises NotARouter with the reason."""
    selection = _selection(ids)
    logits = logits_behind(selection)
    nodes = _between(logits, ids, weights)
    constants = _constants(nodes)
    bias = _bias(constants, nodes, int(value_of(logits).shape[-1]))
    changes = [n.name for n in (logits, *nodes) if _is_changed(n)]
    if changes:
        raise NotARouter(f"{changes[0]} is changed in place")
    order = [n for n in program.graph.nodes if n in nodes and n is not bias and not _only_feeds(n, bias)]
    _refuse_rounding(program, logits, order)
    return Region(ids, weights, selection, logits, bias, tuple(order))


def _refuse_rounding(program: Program, logits: fx.Node, nodes: list[fx.Node]) -> None:
    """Raise NotARouter where a router rounds to fewer bits than its model has: the dialect's router would not, and near
    ties are decided by it."""
    model = min((w.dtype.itemsize for w in program.weights.values() if w.dtype.is_floating_point), default=0)
    for node in (logits, *nodes):
        value = value_of(node)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype.itemsize < model:
            raise NotARouter(f"it rounds to {str(value.dtype).removeprefix('torch.')} in {node.name}")


def hands_on(node: fx.Node) -> bool:
    """Whether a node gives its first argument's elements on as they are, in another form or dtype."""
    return node.op == "call_function" and (
        node.target in _COPIES or (is_view(node) and not is_in_place(node)) or node.target is aten._to_copy.default
    )


def is_routed(ids: fx.Node) -> bool:
    """Whether ids come from a `moec::route` already."""
    while hands_on(ids):
        ids = ids.args[0]  # type: ignore[assignment]
    return ids.target is operator.getitem and ids.args[0].target is ROUTE  # type: ignore[union-attr]


def handed_on(node: Any) -> list[fx.Node]:
    """The node, and what it comes from through casts, copies and views that keep the last dimension."""
    found = [node]
    while found[-1].op == "call_function" and passes_through(found[-1]):
        found.append(found[-1].args[0])
    return found


def linear_behind(node: Any, linears: Mapping[fx.Node, Linear]) -> Linear | None:
    """The linear layer that logits come from, through casts, copies and views that keep the experts' dimension; None
    where they come from something else."""
    return next((linears[n] for n in handed_on(node) if n in linears), None)


def scaled_linear_behind(node: Any, linears: Mapping[fx.Node, Linear]) -> tuple[Linear, float] | None:
    """The linear layer that logits come from, and the number by which they are multiplied on their way (a temperature
    divides); None where they come from something else."""
    factor, nodes = 1.0, handed_on(node)
    while nodes[-1].target in _SCALES and not any(n in linears for n in nodes) and not nodes[-1].kwargs:
        source, number = nodes[-1].args[:2]
        if not isinstance(source, fx.Node) or not isinstance(number, int | float) or not number:
            return None
        factor *= 1 / number if nodes[-1].target in _SCALES[:2] else number
        nodes = handed_on(source)
    linear = next((linears[n] for n in nodes if n in linears), None)
    return (linear, factor) if linear is not None and 0 < factor < math.inf else None


def route_behind(ids: Any, weights: Any) -> fx.Node | None:
    """The `moec::route` whose two outputs these are; None where something else stands between, or no such operator."""
    outputs = [handed_on(weights)[-1], handed_on(ids)[-1]]
    if any(n.target is not operator.getitem or n.args[1] != place for place, n in enumerate(outputs)):
        return None
    source, other = (n.args[0] for n in outputs)
    return source if source is other and source.target is ROUTE else None  # type: ignore[union-attr, return-value]


def _selection(ids: fx.Node) -> fx.Node:
    node = ids
    while node.target not in SELECTIONS:
        if not hands_on(node) and not (node.target is operator.getitem and node.args[1] == 1):
            raise NotARouter(f"its experts are not chosen by a top-k but by {node.name}")
        node = node.args[0]  # type: ignore[assignment]
    return node


def logits_behind(selection: fx.Node) -> fx.Node:
    """The input of the first score function before the selection, or else of the selection itself; before any cast."""
    node: fx.Node = selection.args[0]  # type: ignore[assignment]
    found = node
    while node.target in SCORES or node.target in _CHOICES or hands_on(node):
        floats = [a for a in node.args if _is_float(a) and not _is_constant(a)]
        if not floats:
            break
        if node.target in SCORES:
            found = floats[0]
        node = floats[0]
    while hands_on(found) and _is_float(found.args[0]) and _form(found) == _form(found.args[0]):
        found = found.args[0]  # type: ignore[assignment]
    return found


def _is_float(node: Any) -> TypeGuard[fx.Node]:
    """Whether a node is one tensor of floats; what is cut into several is a list."""
    value = value_of(node) if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def _form(node: Any) -> list[str]:
    """The shape as text: comparing symbolic sizes themselves would add guards to the capture's."""
    return [str(size) for size in value_of(node).shape]


def _is_constant(node: fx.Node) -> bool:
    """Whether a node depends on weights and on nothing else."""
    return node.op == "get_attr" or (bool(node.all_input_nodes) and all(_is_constant(n) for n in node.all_input_nodes))


def _between(logits: fx.Node, *ends: fx.Node) -> set[fx.Node]:
    """Every node that the ends depend on, up to the logits; weights and sizes end a path too."""
    found: set[fx.Node] = set()
    todo = list(ends)
    while todo:
        node = todo.pop()
        if node is logits or node in found:
            continue
        if node.op == "placeholder" or len(found) > _REGION_LIMIT:
            raise NotARouter(f"its ids or weights depend on more than the logits {logits.name}")
        found.add(node)
        todo += inputs_of(node)
    return found


def _constants(nodes: set[fx.Node]) -> list[fx.Node]:
    """Constants of more than one element which something that is not constant reads."""
    return [
        n
        for n in nodes
        if _is_constant(n) and value_of(n).numel() > 1 and any(u in nodes and not _is_constant(u) for u in n.users)
    ]


def _bias(constants: list[fx.Node], nodes: set[fx.Node], experts: int) -> fx.Node | None:
    if not constants:
        return None
    bias = constants[0]
    if len(constants) > 1 or value_of(bias).numel() != experts or not value_of(bias).is_floating_point():
        raise NotARouter(f"more than a correction bias takes part: {', '.join(n.name for n in constants)}")
    return bias


def _is_changed(node: fx.Node) -> bool:
    """Whether something writes to a node's result, itself or through a view."""
    return any(is_in_place(user) or (is_view(user) and _is_changed(user)) for user in node.users)


def own_vector(node: fx.Node) -> fx.Node:
    """The weight behind a constant `[N]`, where only operators that change nothing stand between."""
    while (
        hands_on(node) and value_of(node).dtype == value_of(node.args[0]).dtype and _form(node) == _form(node.args[0])
    ):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _only_feeds(node: fx.Node, bias: fx.Node | None) -> bool:
    return bias is not None and _is_constant(node) and value_of(node).numel() > 1
