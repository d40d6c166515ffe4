"""Where a model may behave in another way when its inputs get longer: what its config, its graph and its conditions
show."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from moec.frontend.source import Source
from moec.program.conditions import bounds
from moec.program.program import Program
from moec.program.signature import dynamic_dimensions, identifier

_LEAST = 3  # smaller numbers stand everywhere in a graph, and every proof runs on both sides of them
_MOST = 2**31  # torch writes larger ones for "to the end"
_ops, _DELTA_RULE = torch.ops.aten, torch.ops.moec.linear_attention.default
_COMPARISONS = {
    _ops.eq, _ops.ne, _ops.lt, _ops.le, _ops.gt, _ops.ge, operator.eq, operator.ne, operator.lt, operator.le,
    operator.gt, operator.ge,
}  # fmt: skip
_PLACES = _COMPARISONS | {  # what is done with positions where a bound lies
    _ops.add, _ops.sub, _ops.rsub, _ops.remainder, _ops.fmod, _ops.floor_divide, _ops.div, _ops.clamp, _ops.clamp_min,
    _ops.clamp_max, _ops.minimum, _ops.maximum, _ops.slice, _ops.arange, _ops.bitwise_right_shift, operator.add,
    operator.sub, operator.mod, operator.floordiv, operator.truediv, torch.sym_max, torch.sym_min,
}  # fmt: skip
CHUNK = 64  # tokens: what transformers, and the kernels that it calls, cut a delta rule's text into; no config says so
_LOOKUPS = {_ops.embedding: 0, _ops.index: 0, _ops.index_select: 1}  # operator -> the dimension that is looked up


@dataclass(frozen=True, order=True)
class Bound:
    """A size after which a model may behave in another way, so that a proof has to stand on both sides of it.

    Attributes:
        size: the last one before.
        name: what says so: an entry of the config, a table, a number of the graph, a condition.
        dimension: that it is about; empty for every length.
    """

    size: int
    name: str
    dimension: str = ""


def find_bounds(source: Source, program: Program) -> list[Bound]:
    """All bounds that a model shows, in order of size, each size of a dimension once.

    Args:
        source: its facts hold the config's lengths.
        program: as captured; its graph holds tables of positions, and numbers that positions are compared with.
    """
    facts = source.facts()
    stated = {"max_position_embeddings": facts.context, **facts.lengths}
    found = [
        *(Bound(size, name) for name, size in stated.items()),
        *(Bound(rows, f"a table of {rows:,} positions") for rows in table_lengths(source, program)),
        *(Bound(number, f"{number:,} in the graph") for number in _numbers(source, program)),
        *([Bound(CHUNK, f"chunks of {CHUNK}, in which delta rules are computed")] if _has_delta_rule(program) else []),
        *_conditions(program),
    ]
    batch = next(iter(dynamic_dimensions(program.inputs)), "")
    kept: dict[tuple[int, bool], Bound] = {}
    for bound in found:
        if bound.size >= _LEAST or (bound.dimension and bound.size > 0):
            kept.setdefault((bound.size, bound.dimension == batch), bound)
    return sorted(kept.values())


def _has_delta_rule(program: Program) -> bool:
    return any(len(node.args) > 5 and node.args[5] is not None for node in program.nodes(_DELTA_RULE))  # it has a rate


def _conditions(program: Program) -> Iterator[Bound]:
    """Where each condition begins and ceases to hold; of one on several dimensions, the largest size of each, where the
    others are small."""
    names = {identifier(name): name for name in dynamic_dimensions(program.inputs)}
    for condition in program.conditions:
        for name, sizes in bounds([condition]).items():
            lower = [n for n in sizes if n + 1 in sizes]  # both neighbours of a bound stand there
            for size in {*lower[-1:], *(lower[:1] if len(condition.names) == 1 else ())}:
                yield Bound(size, f"a condition on {name}", names.get(name, name))


def table_lengths(source: Source, program: Program) -> list[int]:
    """Rows of the tables and masks of the model that positions look up, or that are cut to a text's length."""
    tokens = _of_tokens(source, program)
    return sorted({rows for node in program.graph.nodes for rows in _rows(node, tokens)})


def _rows(node: fx.Node, tokens: set[fx.Node]) -> Iterator[int]:
    if node.op != "call_function" or not node.args or not _is_constant(node.args[0]):
        return
    shape, kind = node.args[0].meta["val"].shape, _kind(node)  # type: ignore[union-attr]
    if kind in _LOOKUPS and len(node.args) > 1:
        chosen = node.args[-1] if kind is not _ops.embedding else node.args[1]
        ids = chosen if isinstance(chosen, list | tuple) else [chosen]
        for dim, one in enumerate(ids, int(node.args[1]) if kind is _ops.index_select else 0):  # type: ignore[arg-type]
            if isinstance(one, fx.Node) and one not in tokens and _is_whole(one) and not _is_constant(one):
                yield int(shape[dim])
    if kind is _ops.slice and any(isinstance(a, fx.Node) for a in node.args[2:]):
        yield int(shape[int(node.args[1])])  # type: ignore[arg-type]


def _numbers(source: Source, program: Program) -> list[int]:
    """Numbers that positions and sizes are compared with, moved or cut by."""
    tokens = _of_tokens(source, program)
    found = set[int]()
    for node in program.graph.nodes:
        if node.op == "call_function" and _kind(node) in _PLACES and _is_whole(node):
            places = [a for a in node.args if isinstance(a, fx.Node)]
            if places and not any(a in tokens or _is_constant(a) for a in places):
                given = node.args[2:] if _kind(node) is _ops.slice else node.args
                found |= {abs(a) for a in given if isinstance(a, int) and _LEAST <= abs(a) < _MOST}
    return sorted(found)


def _of_tokens(source: Source, program: Program) -> set[fx.Node]:
    """Nodes that hold tokens of a vocabulary, or what was computed of them: numbers there are no positions. What a
    comparison makes of tokens, and a size, are none."""
    domains = {i.identifier: source.domains.get(i.name) for i in program.inputs}
    found = set[fx.Node]()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            domain = domains.get(str(node.target))
            if _is_whole(node) and (domain is None or domain.kind in ("token", "type", "number")):
                found.add(node)
        elif _is_whole(node) and _kind(node) not in _COMPARISONS and not isinstance(node.meta["val"], torch.SymInt):
            found |= {node} if any(a in found for a in node.all_input_nodes) else set()
    return found


def _kind(node: fx.Node) -> Any:
    """The operator, whichever of its overloads a node calls."""
    return getattr(node.target, "overloadpacket", node.target)


def _is_whole(node: fx.Node) -> bool:
    """Whether a node makes whole numbers or truth values: positions are such, activations are not."""
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt | torch.SymBool | int) or (
        isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()
    )


def _is_constant(node: Any) -> bool:
    """Whether a node is a weight or a buffer, perhaps seen in another shape or dtype."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "get_attr":
        return isinstance(node.meta.get("val"), Tensor)
    value = node.meta.get("val")
    static = isinstance(value, Tensor) and not any(isinstance(n, torch.SymInt) for n in value.shape)
    return (
        static
        and node.op == "call_function"
        and len(node.all_input_nodes) > 0
        and all(_is_constant(a) for a in node.all_input_nodes)
    )
