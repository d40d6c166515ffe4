"""A graph that gives what its routers do beside its outputs: logits, and the choices of every mixture."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from moec.dialect import Routing
from moec.dialect.moe import router_logits
from moec.program.dialect_call import ROUTE, DialectCall, RouteCall
from moec.program.provenance import module_path
from moec.routing.scores import shares_by
from moec.routing.tally import Choice

aten = torch.ops.aten
_PRODUCTS = (aten.linear.default, aten.addmm.default, aten.mm.default, aten.matmul.default)
_STEPS = 8  # casts, views and biases between a router's product and its logits
EXPERTS, MOE = torch.ops.moec.experts.default, torch.ops.moec.moe.default


class _Call(DialectCall):
    """A mixture; `MoeCall` reads more of it, and stands above `Program`, which this is a part of."""

    operators = (EXPERTS, MOE)


@dataclass(frozen=True)
class Mixture:
    """One mixture of a graph.

    Attributes:
        name: the module that it came from. experts: E.
        router: at which place among the routers its own stands; None where moec does not know it.
    """

    name: str
    experts: int
    router: int | None


@dataclass(frozen=True)
class Routers:
    """A graph with more outputs: the logits `[..., E]` of every router, then ids and weights of every mixture.

    Attributes:
        graph: it. outputs: how many it had before.
        rules: of the routers. mixtures: in graph order.
    """

    graph: fx.Graph
    outputs: int
    rules: list[Routing]
    mixtures: list[Mixture]

    def logits(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of each router, `[T, E]`, from the graph's outputs."""
        return tuple(v.flatten(0, -2) for v in values[self.outputs : self.outputs + len(self.rules)])

    def choices(self, values: Sequence[Tensor]) -> Iterator[tuple[str, Choice]]:
        """Name and choice of each mixture, detached."""
        logits, rest = self.logits(values), [v.detach() for v in values[self.outputs + len(self.rules) :]]
        for mixture, ids, weights in zip(self.mixtures, rest[::2], rest[1::2], strict=True):
            shares = None if mixture.router is None else shares_by(logits[mixture.router], self.rules[mixture.router])
            yield mixture.name, Choice(mixture.experts, ids.flatten(0, -2), weights.flatten(0, -2), shares)


def with_routers(graph: fx.Graph, outputs: int) -> Routers:
    """A copy of a graph with this many outputs that also gives what its routers do."""
    found = Routers(deepcopy(graph), outputs, [], [])
    logits: list[fx.Node] = []
    choices: list[fx.Node] = []
    place: dict[fx.Node, int] = {}
    for node in list(found.graph.nodes):
        if node.target in (ROUTE, MOE):
            place[node] = len(logits)
            logits.append(_logits(found.graph, node))
            found.rules.append(Routing.of(node.kwargs))
        if node.target in (EXPERTS, MOE):
            call = _Call(node)
            fused = node.target is MOE
            router = place.get(node if fused else route_of(call.argument("ids")))
            experts = int(call.node_of("w_in").meta["val"].shape[0])
            found.mixtures.append(Mixture(module_path(node) or node.name, experts, router))
            own = (call.argument("ids"), call.argument("weights"))
            choices += _choice(found.graph, node, logits[-1]) if fused else own
    output = next(n for n in found.graph.nodes if n.op == "output")
    output.args = ((*output.args[0], *logits, *choices),)
    return found


def route_of(ids: Any) -> Any:
    """The `moec::route` that ids are taken from, through copies and views; whatever stands first where there is
    none."""
    node = ids
    while node.op == "call_function" and node.target not in (ROUTE, operator.getitem) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.args[0] if node.target is operator.getitem else node


def _logits(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if node.target is ROUTE:
        return RouteCall(node).logits  # type: ignore[no-any-return]
    parts = (_Call(node).argument(name) for name in ("x", "router_weight", "router_bias"))
    with graph.inserting_before(node):
        return graph.call_function(router_logits, tuple(parts))


def _choice(graph: fx.Graph, node: fx.Node, logits: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Ids and weights of a `moec::moe`, chosen once more."""
    with graph.inserting_before(node):
        bias, rule = _Call(node).argument("selection_bias"), Routing.of(node.kwargs)
        route = graph.call_function(ROUTE, (logits, bias), rule.arguments())
        weights, ids = (graph.call_function(operator.getitem, (route, k)) for k in (0, 1))
    return ids, weights


# ---------------------------------------------------------------------- a router's own weights
def router_weights(graph: fx.Graph) -> list[str]:
    """Names of the weights and biases that the logits of a graph's routers are made with."""
    found: list[str] = []
    for node in graph.nodes:
        if node.target is ROUTE:
            found += _behind(RouteCall(node).logits)
        elif node.target is MOE:
            parts = (_Call(node).argument(name) for name in ("router_weight", "router_bias"))
            found += [name for part in parts if part is not None for name in _constants_of(part)]
    return list(dict.fromkeys(found))


def expert_weights(graph: fx.Graph) -> dict[str, list[str]]:
    """Names of the weights behind the two matrices of each mixture's experts, by the mixture's name."""
    found: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.target in (EXPERTS, MOE):
            call = _Call(node)
            names = [name for part in ("w_in", "w_out") for name in _constants_of(call.node_of(part))]
            found[module_path(node) or node.name] = names
    return found


def _behind(logits: Any) -> list[str]:
    """What the product behind logits and the steps after it read; nothing where no product is near."""
    found: list[str] = []
    for _ in range(_STEPS):
        inputs = logits.all_input_nodes
        found += [name for n in inputs if _is_constant(n) for name in _constants_of(n)]
        moving = [n for n in inputs if not _is_constant(n)]
        if logits.target in _PRODUCTS:
            return found
        if not moving:
            break
        logits = moving[0]
    return []


def _is_constant(node: fx.Node) -> bool:
    return node.op == "get_attr" or (bool(node.all_input_nodes) and all(map(_is_constant, node.all_input_nodes)))


def _constants_of(node: fx.Node) -> list[str]:
    own = [str(node.target)] if node.op == "get_attr" else []
    return [*own, *(name for n in node.all_input_nodes for name in _constants_of(n))]
