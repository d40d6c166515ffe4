"""Mixtures of experts whose experts can be told apart, and the rewriting that leaves them with some of these, or gives
them another one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from moec.dialect import Routing
from moec.program.dialect_call import DEQUANTIZE, DequantizeCall, RouteCall
from moec.program.functional import drop_dead
from moec.program.moe_call import EXPERTS, MoeCall
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.program.rewriting import call_like
from moec.recognition.linear import Linear, constant, value_of
from moec.recognition.router_region import NotARouter, handed_on, hands_on, route_behind
from moec.weights.lazy import Weight, concat, take, whole

aten = torch.ops.aten


@dataclass(frozen=True)
class MoeBlock:
    """One block.

    Attributes:
        node: its `moec::experts` or `moec::moe`. route: where its router chooses: a `moec::route`, or `node`.
        projection: the linear layer of the logits; None where `node` holds it itself.
        rule: of the choice. experts: how many there are to choose from.
    """

    node: fx.Node
    route: fx.Node
    projection: Linear | None
    rule: Routing
    experts: int

    @property
    def module(self) -> str:
        """The dotted name of the module that it came from, else the operator's."""
        return module_path(self.node) or self.node.name

    @property
    def matrices(self) -> str:
        """The name of the weight behind its experts' first matrices."""
        return _stem(MoeCall(self.node).w_in)


def find_block(node: fx.Node, linears: dict[fx.Node, Linear]) -> MoeBlock:
    """The block around a `moec::experts` or `moec::moe`.

    Raises:
        NotARouter: with the reason, when its router is not in a form whose experts can be told apart.
    """
    call = MoeCall(node)
    if call.routing is not None:
        return MoeBlock(node, node, None, call.routing, call.experts)
    route = route_behind(call.ids, call.weights)
    if route is None:
        raise NotARouter("what gives it ids and weights is not one moec::route")
    projection = next((linears[n] for n in handed_on(RouteCall(route).logits) if n in linears), None)
    if projection is None:
        raise NotARouter("its logits are not one linear layer")
    stranger = _stranger(route)
    if stranger is not None:
        raise NotARouter(f"{stranger.name} reads its choice too")
    return MoeBlock(node, route, projection, RouteCall(route).routing, call.experts)


def _stranger(route: fx.Node) -> fx.Node | None:
    """A node that reads the ids or weights of a route and is no mixture of experts: it might count on the experts' old
    numbers."""
    todo = list(route.users)
    while todo:
        node = todo.pop()
        if node.op == "output" or node.target == EXPERTS:
            continue
        if node.target is not operator.getitem and not hands_on(node):
            return node
        todo += node.users
    return None


def together(blocks: list[MoeBlock]) -> list[list[MoeBlock]]:
    """Blocks that share experts or a router, and so can only be cut alike, in graph order."""
    found: list[list[MoeBlock]] = []
    for block in blocks:
        linked = (
            group for group in found if any(m.route is block.route or m.matrices == block.matrices for m in group)
        )
        group = next(linked, None)
        if group is None:
            found.append([block])
        else:
            group.append(block)
    return found


# ---------------------------------------------------------------------- cutting
def cut(program: Program, blocks: list[MoeBlock], remaining: tuple[int, ...], by: str) -> dict[str, str]:
    """Cut blocks that go together down to the experts `remaining`, which must be in order; no weight is read.

    Weights, biases, the router's rows and both of its biases are cut; the routing rule stays as it is.

    Args:
        by: the name of the pass.

    Returns:
        Names of new weights and the names that they should have, see `rename`.

    Raises:
        NotARouter: with the reason, when a weight is computed in the graph.
    """
    cutter = _Cutter(program, lambda _, weight: take(weight, remaining), len(remaining), by)
    for block in blocks:
        cutter.cut(block)
    return cutter.names


def grow(program: Program, block: MoeBlock, added: Mapping[str, Weight], by: str) -> dict[str, str]:
    """Give a block one more expert, behind those that it has; no weight is read.

    Args:
        added: by the names of the block's weights, see `names_of`, what is put behind each, `[1, …]`.
        by: the name of the pass.

    Returns:
        Names of new weights and the names that they should have, see `rename`.

    Raises:
        NotARouter: with the reason, when a weight is computed in the graph.
    """
    cutter = _Cutter(program, lambda name, weight: concat([weight, added[name]], 0), block.experts + 1, by)
    cutter.cut(block)
    return cutter.names


def names_of(block: MoeBlock) -> dict[str, str]:
    """The names of a block's weights: `w_in`, `w_out` and biases of its experts, and its `router`."""
    found = {name: _stem(argument) for name, argument in MoeCall(block.node).per_expert().items()}
    return {**found, "router": _stem(router_matrix(block))}


def router_matrix(block: MoeBlock) -> Any:
    """What the linear layer of the logits reads as its matrix."""
    assert block.projection is not None
    return block.projection.product.args[1]


class _Cutter:
    """Changes weights once, whoever reads them.

    Args:
        change: of a weight with one row an expert, by its name, to that of the other number of experts, `count`.
    """

    def __init__(self, program: Program, change: Callable[[str, Weight], Weight], count: int, by: str) -> None:
        self.program, self.change, self.count, self.by = program, change, count, by
        self.names: dict[str, str] = {}
        self._made: dict[str, fx.Node] = {}
        self._routes: set[fx.Node] = set()

    def cut(self, block: MoeBlock) -> None:
        call = MoeCall(block.node)
        with self.program.graph.inserting_before(block.node):
            call.replace(**{name: self._matrix(a, block.node) for name, a in call.per_expert().items()})
        if block.projection is not None and block.route not in self._routes:
            self._routes.add(block.route)
            self._cut_route(block.route, block.projection)

    def _cut_route(self, route: fx.Node, linear: Linear) -> None:
        """A new linear layer for the logits: other readers of the old one keep it."""
        call, old = RouteCall(route), linear.node
        logits = call.logits
        name = (
            _stem(linear.product.args[1])
            if linear.product.target == aten.linear.default
            else f"{old.name}.router.weight"
        )
        bias_name = (
            _stem(old.args[2]) if old is linear.product and len(old.args) > 2 else ""
        ) or f"{old.name}.router.bias"
        with self.program.graph.inserting_before(route):
            bias = None if linear.bias is None else self._read(bias_name, linear.bias)
            new = call_like(
                self.program, old, self.by, aten.linear.default, linear.x, self._read(name, linear.weight), bias
            )
            if value_of(logits).dim() != value_of(new).dim():
                new = call_like(self.program, old, self.by, aten.reshape.default, new, [-1, self.count])
            if value_of(logits).dtype != value_of(new).dtype:
                new = call_like(self.program, old, self.by, aten.to.dtype, new, value_of(logits).dtype)
            call.replace(logits=new, bias=self._matrix(call.bias, route))

    def _matrix(self, argument: Any, consumer: fx.Node) -> fx.Node | None:
        """What becomes of an argument with one row an expert."""
        if argument is None:
            return None
        if argument.target == DEQUANTIZE:
            parts = [self._matrix(a, consumer) for a in DequantizeCall(argument).tensors().values()]
            return call_like(self.program, argument, self.by, DEQUANTIZE, *parts, **argument.kwargs)
        weight = constant(self.program, argument) or self._vector(argument)
        if weight is None:
            raise NotARouter(f"{argument.name} is computed, so that it has no rows of a weight, an expert each")
        return self._read(_stem(argument), weight)

    def _vector(self, argument: fx.Node) -> Weight | None:
        """A weight `[E]` behind views, as a correction bias may stand."""
        node: Any = argument
        while isinstance(node, fx.Node) and node.op == "call_function" and hands_on(node):
            node = node.args[0]
        weight = constant(self.program, node)
        size = value_of(argument).numel()
        return (
            None if weight is None or weight.meta().numel() != size else whole("flat", lambda t: t.reshape(-1), weight)
        )

    def _read(self, name: str, weight: Weight) -> fx.Node:
        if name not in self._made:
            entered = self.program.add_weight(name, self.change(name, weight))
            self.names[entered] = name
            self._made[name] = self.program.read_weight(entered)
        return self._made[name]


def _stem(node: Any) -> str:
    """The name of the weight that a node hands on, the operator's own where there is none."""
    start = node
    while isinstance(node, fx.Node) and node.op == "call_function" and node.args:
        node = node.args[0]
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else str(start)


def rename(program: Program, names: dict[str, str]) -> None:
    """Give weights the names that they should have, where nothing reads the weights any more that were called so
    before."""
    drop_dead(program.graph)
    program.drop_unused_weights()
    for now, wanted in names.items():
        if now in program.weights and wanted not in program.weights:
            program.add_weight(wanted, program.weights[now])
            for node in (n for n in program.graph.nodes if n.op == "get_attr" and n.target == now):
                node.target = wanted
    program.drop_unused_weights()
