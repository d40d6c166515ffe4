"""What each matrix of a program is for, found by structure: routers and gates, experts, attention, embeddings, the
head, and the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from moec.program.dialect_call import DEQUANTIZE, DEQUANTIZE_FLOAT
from moec.program.dialect_call import PACKED as PACKED
from moec.program.moe_call import EXPERTS, MoeCall, matrix_positions
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.recognition.ffn import ends_ffn
from moec.recognition.linear import Linear, constant, find_linears, value_of
from moec.weights.lazy import Weight

aten, ops = torch.ops.aten, torch.ops.moec
_EXPERTS: dict[Any, tuple[int, int]] = {operator: matrix_positions(operator) for operator in MoeCall.operators}
_WIDTH = re.compile(r"_\d+bit$")
_CORES = (ops.attention, aten.scaled_dot_product_attention, aten.matmul, aten.bmm, aten.baddbmm)
_LEVELS = 2  # projections one after another on an attention's side, as in multi-head latent attention


@dataclass(frozen=True)
class Use:
    """A matrix as one operator reads it.

    Attributes:
        node: the operator. place: of the matrix among its arguments.
        kind: `router`, `gate` (one output, as a shared expert's), `experts`, `attention`, `dense`, `embeddings` or
            `lm_head`.
        weight: `[..., out, in]`, lazy; None where it is packed already.
        name: of the weight in the program. module: that the operator came from.
        last: whether it is the last matrix of an expert or of a dense feed-forward network: `down`.
    """

    node: fx.Node
    place: int
    kind: str
    weight: Weight | None
    name: str
    module: str
    last: bool = False


def weight_uses(program: Program) -> list[Use]:
    """Every matrix that a linear layer, an embedding or a mixture of experts reads, in graph order."""
    products, tables, linears = _products(program), _tables(program), find_linears(program)
    kinds, lasts = _kinds(program, products, tables), _lasts(program, linears)
    found = [_use(program, n, 0, "embeddings") for n in tables]
    found += [_use(program, n, place, "experts") for n in program.nodes(*_EXPERTS) for place in _EXPERTS[n.target]]
    found += [_use(program, n, place, kinds[n], weight, n in lasts) for n, (place, weight) in products.items()]
    order = {n: i for i, n in enumerate(program.graph.nodes)}
    return sorted((u for u in found if u is not None), key=lambda u: (order[u.node], u.place))


def _use(
    program: Program, node: fx.Node, place: int, kind: str, weight: Weight | None = None, last: bool = False
) -> Use | None:
    argument = node.args[place]
    weight = weight or constant(program, argument)
    name, last = _stem(argument), last or (kind == "experts" and place == _EXPERTS[node.target][-1])
    return (
        Use(node, place, kind, weight, name, module_path(node), last)
        if name and (weight is not None or _is_packed(argument))
        else None
    )


def _stem(node: Any) -> str:
    """The name of the weight that a node hands on."""
    packed, mixed = _is_packed(node), is_mixed(node)
    while isinstance(node, fx.Node) and node.op == "call_function" and node.args:
        packed = packed or _is_packed(node)
        node = node.args[0][0] if node.target == aten.cat.default else node.args[0]  # type: ignore[index]
    name = str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else ""
    name = name.removesuffix(PACKED) if packed else name
    return _WIDTH.sub("", name) if mixed else name


def width_name(name: str, bits: int) -> str:
    """How the part of a stack that has one of several widths is called."""
    return f"{name}_{bits}bit"


def _is_packed(node: Any) -> bool:
    return isinstance(node, fx.Node) and (node.target in (DEQUANTIZE, DEQUANTIZE_FLOAT) or is_mixed(node))


def is_mixed(node: Any) -> bool:
    """Whether a node is a stack of several widths: `index_select(cat([moec::dequantize(…), …]), 0, order)`."""
    if not isinstance(node, fx.Node) or node.target != aten.index_select.default or node.args[1] != 0:
        return False
    parts = node.args[0]
    if (
        not isinstance(parts, fx.Node)
        or parts.target != aten.cat.default
        or (len(parts.args) > 1 and parts.args[1] != 0)
    ):
        return False
    return all(isinstance(p, fx.Node) and p.target == DEQUANTIZE for p in parts.args[0])  # type: ignore[union-attr]


def _products(program: Program) -> dict[fx.Node, tuple[int, Weight | None]]:
    """Products with a constant matrix: its place among the arguments, and the matrix as `[out, in]`."""
    found: dict[fx.Node, tuple[int, Weight | None]] = {
        n: (1, None) for n in program.nodes(aten.linear.default) if _is_packed(n.args[1])
    }
    for linear in find_linears(program).values():
        found[linear.product] = (2 if linear.product.target == aten.addmm.default else 1, linear.weight)
    return found


def _lasts(program: Program, linears: dict[fx.Node, Linear]) -> set[fx.Node]:
    """Products that end a dense feed-forward network."""
    return {found.product for found in linears.values() if ends_ffn(program, found, linears)}


def _tables(program: Program) -> list[fx.Node]:
    return [
        n
        for n in program.nodes(aten.embedding.default)
        if _is_packed(n.args[0]) or constant(program, n.args[0]) is not None
    ]


# ---------------------------------------------------------------------- kinds
def _kinds(program: Program, products: Iterable[fx.Node], tables: list[fx.Node]) -> dict[fx.Node, str]:
    products = set(products)
    routers, attention = _routers(program, products), _attention(program, products)
    rows = {value_of(n.args[0]).shape[0] for n in tables}
    blocks = {*products, *program.nodes(*_EXPERTS)}

    def kind(node: fx.Node) -> str:
        out = value_of(node).shape[-1]
        if node in routers:
            return "router"
        if node in attention:
            return "attention"
        if out in rows and not blocks & _reachable(node, forward=True):
            return "lm_head"
        return "gate" if out == 1 else "dense"

    return {n: kind(n) for n in products}


def _reachable(node: fx.Node, forward: bool) -> set[fx.Node]:
    """Everything computed from a node, or everything that it is computed from."""
    found: set[fx.Node] = set()
    todo = [node]
    while todo:
        new = [n for n in (todo.pop().users if forward else todo.pop().all_input_nodes) if n not in found]
        found.update(new)
        todo += new
    return found


def _routers(program: Program, products: set[fx.Node]) -> set[fx.Node]:
    """Products that decide about experts: all that ids and weights depend on and the experts' rows do not, and the last
    one with a row an expert, even where the rows depend on it, as when scores are applied to them."""
    found: set[fx.Node] = set()
    for block in program.nodes(EXPERTS):
        call = MoeCall(block)
        x, ids, weights = (call.node_of(name) for name in ("x", "ids", "weights"))
        before = _reachable(x, forward=False) | {x}
        found |= products & ((_reachable(ids, forward=False) | _reachable(weights, forward=False)) - before)
        found |= {n for n in _nearest([ids, weights], products) if value_of(n).shape[-1] == call.experts}
    return found


def _nearest(nodes: list[fx.Node], wanted: set[fx.Node], forward: bool = False) -> set[fx.Node]:
    """The first of the wanted nodes on each path back (or on) from some nodes."""
    found, seen, todo = set(), set(nodes), list(nodes)
    while todo:
        node = todo.pop()
        if node in wanted:
            found.add(node)
            continue
        new = [
            n
            for n in (node.users if forward else node.all_input_nodes)
            if n not in seen and not (forward and _joins(n))
        ]
        seen.update(new)
        todo += new
    return found


def _attention(program: Program, products: set[fx.Node]) -> set[fx.Node]:
    """Projections before and behind an attention: up to two in a row before it, inside the branch that it stands in,
    and the first behind it."""
    cores = [n for n in program.nodes(*_CORES) if n not in products]
    found = {p for c in cores for p in _nearest(list(c.users), products, forward=True)}
    for core in cores:
        seen, todo = set(), [(n, 0) for n in core.all_input_nodes]
        while todo:
            node, level = todo.pop()
            if (
                (node, level) in seen
                or node.op != "call_function"
                or node.target in _EXPERTS
                or (level and _joins(node))
            ):
                continue
            seen.add((node, level))
            if node in products:
                found.add(node)
                level += 1
            todo += [(n, level) for n in node.all_input_nodes if level < _LEVELS]
    return found


def _joins(node: fx.Node) -> bool:
    """Whether a node adds two computed tensors: a residual's end."""
    return node.target in (aten.add.Tensor, aten.add_.Tensor) and all(
        isinstance(a, fx.Node) and a.op == "call_function" for a in node.args[:2]
    )
