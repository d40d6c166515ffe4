"""Which values an input may hold, found in the graph: an embedding has a row for these ids and for no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from moec.program.conditions import Values
from moec.program.signature import Input

_aten = torch.ops.aten
# operators that leave every value as it is, in another shape, place or dtype
_SAME = {
    _aten.alias, _aten.clone, _aten.contiguous, _aten.detach, _aten.expand, _aten.flatten, _aten.lift_fresh_copy,
    _aten.permute, _aten.repeat, _aten.reshape, _aten.squeeze, _aten.t, _aten.to, _aten.transpose,
    _aten._to_copy, _aten.unflatten, _aten.unsqueeze, _aten.view, _aten._unsafe_view,
}  # fmt: skip
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def values_of(graph: fx.Graph, inputs: tuple[Input, ...]) -> tuple[Values, ...]:
    """The integers that each input may hold so that every table it is looked up in has a row for them.

    Followed from the table back to the input through changes of shape and dtype, and through a number that is added or
    taken away. An input that the model clamps, masks or changes otherwise before may hold anything.
    """
    names = {i.identifier: i.name for i in inputs}
    found: dict[str, tuple[int, int]] = {}
    for ids, low, high in _lookups(graph):
        name, shift = _origin(ids)
        if name in names:
            least, largest = found.get(names[name], (low - shift, high - shift))
            found[names[name]] = max(least, low - shift), min(largest, high - shift)
    return tuple(Values(name, low, high) for name, (low, high) in found.items())


def positions_in_tables(graph: fx.Graph) -> Iterator[sympy.Expr]:
    """Conditions on sizes: where a table is looked up at 0, 1, 2 … as many times as a size says, it has so many rows.
    An engine's runtime may read past its end without a word."""
    for ids, _, high in _lookups(graph):
        node, shift = _through(ids)
        if isinstance(node, fx.Node) and node.target in (_aten.arange.default, _aten.arange.start):
            start, end = (0, node.args[0]) if node.target is _aten.arange.default else node.args[:2]
            start, end = (a.meta.get("val") if isinstance(a, fx.Node) else a for a in (start, end))
            if isinstance(end, torch.SymInt):
                yield sympy.Le(end.node.expr, high + 1 - shift)


def _lookups(graph: fx.Graph) -> Iterator[tuple[Any, int, int]]:
    """What indexes a table, with the least and the largest index that PyTorch takes: an embedding takes no negative
    one, an indexed tensor counts them from its end."""
    for node in graph.nodes:
        if node.target in (_aten.embedding.default, _aten.index_select.default):
            table, ids = (node.args[0], node.args[1]) if node.target is _aten.embedding.default else _selected(node)
            rows = _rows(table, 0 if node.target is _aten.embedding.default else node.args[1])
            if rows is not None:
                yield ids, 0, rows - 1
        elif node.target is _aten.index.Tensor:
            for axis, ids in enumerate(node.args[1]):
                rows = _rows(node.args[0], axis)
                if ids is not None and rows is not None and _dtype(ids) in _INTEGERS:
                    yield ids, -rows, rows - 1


def _selected(node: fx.Node) -> tuple[Any, Any]:
    return node.args[0], node.args[2]


def _rows(table: Any, axis: Any) -> int | None:
    value = table.meta.get("val") if isinstance(table, fx.Node) else None
    size = value.shape[axis] if isinstance(value, Tensor) and isinstance(axis, int) and value.dim() else None
    return size if isinstance(size, int) else None


def _dtype(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dtype if isinstance(value, Tensor) else None


def _origin(node: Any) -> tuple[str | None, int]:
    """The placeholder whose every value, plus the number, is an index; no name where there is none."""
    found, shift = _through(node)
    named = isinstance(found, fx.Node) and found.op == "placeholder"
    return (str(found.target), shift) if named else (None, 0)


def _through(node: Any) -> tuple[Any, int]:
    """What gives the values of a node, in another shape or dtype, and the number that is added to them since."""
    shift = 0
    while isinstance(node, fx.Node) and node.op != "placeholder":
        packet = getattr(node.target, "overloadpacket", None)
        other = node.args[1] if len(node.args) > 1 else None
        if packet in (_aten.add, _aten.sub) and type(other) is int and not node.kwargs:
            shift += other if packet is _aten.add else -other
        elif packet not in _SAME or _dtype(node) not in _INTEGERS:
            break
        node = node.args[0]
    return node, shift
