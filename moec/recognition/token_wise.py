"""Whether a piece of graph treats each token for itself: what it says of one must not hang on the others, on how many
there are, or on where one stands.

A trial cannot show that: a capacity shows only where more tokens come than it allows. So places and counts are
followed through the graph. Rows may be picked, put back and put in order by them, as every loop over experts does; they
may not be compared, clamped or counted with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from moec.recognition.linear import is_whole, value_of

aten = torch.ops.aten
# operators over a dimension, and at which position it stands
_OVER: dict[Any, int] = {
    aten.sum: 1, aten.mean: 1, aten.amax: 1, aten.amin: 1, aten.max: 1, aten.min: 1, aten.any: 1, aten.all: 1,
    aten.prod: 1, aten.std: 1, aten.var: 1, aten.norm: 2, aten.linalg_vector_norm: 2, aten.logsumexp: 1,
    aten.argmax: 1, aten.argmin: 1, aten.softmax: 1, aten._softmax: 1, aten.log_softmax: 1, aten._log_softmax: 1,
    aten.cumsum: 1, aten.cumprod: 1, aten.sort: 1, aten.argsort: 1, aten.topk: 2, aten.median: 1, aten.count_nonzero: 1,
    aten._unique2: 9, aten.histc: 9, aten.bincount: 9,
}  # fmt: skip
_LAST = (aten.sort, aten.argsort, aten.topk)  # over the last dimension where none is named
_PLACES = (aten.arange, aten.nonzero, aten.nonzero_numpy)
_LINES = (aten.arange, aten.linspace)  # of these, what says of each token where it stands
_PIECES = {aten.slice: 1, aten.select: 1, aten.narrow: 1, aten.roll: 2, aten.flip: 1}
# operators that compute with a number, be it one of tokens
_NUMBERS = (
    aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.floor_divide, aten.remainder, aten.fmod, aten.pow,
    aten.clamp, aten.clamp_min, aten.clamp_max, aten.lt, aten.le, aten.gt, aten.ge, aten.eq, aten.ne, aten.where,
    aten.masked_fill, aten.fill, aten.scalar_tensor,
)  # fmt: skip
_FILLS = {aten.full: 1, aten.full_like: 1, aten.new_full: 2}  # and those whose other numbers are of a form
_PRODUCTS = (aten.mm, aten.bmm, aten.matmul, aten.addmm, aten.baddbmm)
# operators that pick or put rows, and at which position the places stand
_ROWS: dict[Any, int] = {
    aten.index: 1, aten.index_put: 1, aten._index_put_impl: 1, aten.gather: 2, aten.scatter: 2, aten.scatter_add: 2,
    aten.scatter_reduce: 2, aten.index_add: 2, aten.index_copy: 2, aten.index_select: 2, aten.take_along_dim: 1,
    aten.embedding: 1, aten._grouped_mm: 2,
}  # fmt: skip


def looks_beyond_a_token(nodes: Iterable[fx.Node]) -> fx.Node | None:
    """The first of some nodes, in graph order, that makes what is said of a token hang on more than the token; None
    where each is treated for itself."""
    places: set[fx.Node] = set()  # whole numbers that say where tokens stand, or how many there are
    lines: set[fx.Node] = set()  # those among them that stand for the tokens in their order
    fixed: set[fx.Node] = set()  # what no token comes into
    for node in nodes:
        if node.op == "get_attr" or (node.op == "call_function" and fixed.issuperset(node.all_input_nodes)):
            fixed.add(node)
        value = node.meta.get("val")
        if isinstance(value, torch.SymBool):
            return node
        if node.op != "call_function" or isinstance(value, torch.SymInt | int | float | torch.SymFloat):
            continue
        packet = getattr(node.target, "overloadpacket", node.target)
        in_line = not lines.isdisjoint(node.all_input_nodes)
        if (packet in _LINES and any(_is_open(s) for s in value_of(node).shape)) or (in_line and not _picks(packet)):
            lines.add(node)
        if _is_place(node, packet):
            places.add(node)
        elif _mixes(node, packet) or _counts_with(node, packet, places) or _is_a_number(node, packet):
            return node
        elif in_line and _picks(packet) and node.args[0] in fixed:
            return node  # a table that says something of each place
        elif _data(node, packet) & places:
            places.add(node)
    return None


def _is_place(node: fx.Node, packet: Any) -> bool:
    """Whether a node makes places or counts out of something else."""
    if packet in _PLACES or (packet is aten.where and len(node.args) == 1):
        return True
    return packet in _OVER and not _is_float(node.args[0]) and _is_over_tokens(node, packet)


def _mixes(node: fx.Node, packet: Any) -> bool:
    """Whether a node computes with the values of several tokens, or takes some by where they stand."""
    if packet in _OVER:
        return _is_over_tokens(node, packet)
    if packet in _PIECES:
        return _is_a_piece(node, packet)
    if packet in _PRODUCTS:
        first = node.args[1] if packet in (aten.addmm, aten.baddbmm) else node.args[0]
        return _is_open(value_of(first).shape[-1])
    return packet is aten.einsum and _sums_tokens(node)


def _picks(packet: Any) -> bool:
    return packet in _ROWS and packet not in (aten.index_put, aten._index_put_impl)


def _is_a_number(node: fx.Node, packet: Any) -> bool:
    """Whether a node computes with how many tokens there are."""
    given = node.args if packet in _NUMBERS else node.args[_FILLS[packet] :][:1] if packet in _FILLS else ()
    return any(isinstance(a, fx.Node) and isinstance(value_of(a), torch.SymInt | torch.SymFloat) for a in given)


def _counts_with(node: fx.Node, packet: Any, places: set[fx.Node]) -> bool:
    """Whether places are more than places to a node: it makes a number or a decision of them."""
    if not _data(node, packet) & places:
        return False
    return any(v.is_floating_point() or v.dtype == torch.bool for v in _tensors(node.meta.get("val")))


def _data(node: fx.Node, packet: Any) -> set[fx.Node]:
    """What a node reads but for the places of rows."""
    at = _ROWS.get(packet)
    given = [a for k, a in enumerate(node.args) if k != at]
    return {n for n in pytree.tree_leaves((given, node.kwargs)) if isinstance(n, fx.Node)}


def _is_over_tokens(node: fx.Node, packet: Any) -> bool:
    at = _OVER[packet]
    shape = value_of(node.args[0]).shape
    named = node.args[at] if len(node.args) > at else node.kwargs.get("dim", -1 if packet in _LAST else None)
    if isinstance(named, fx.Node):
        return False  # element by element: `max(a, b)`
    dims = range(len(shape)) if named is None or named == [] else named if isinstance(named, list | tuple) else [named]
    return any(_is_open(shape[int(d)]) for d in dims)  # type: ignore[arg-type]


def _is_a_piece(node: fx.Node, packet: Any) -> bool:
    at = _PIECES[packet]
    named = node.args[at] if len(node.args) > at else node.kwargs.get("dims", 0)
    shape = value_of(node.args[0]).shape
    if packet in (aten.slice, aten.narrow) and any(isinstance(a, fx.Node) for a in node.args[2:]):
        return True  # cut to as many as there are tokens
    dims = named if isinstance(named, list | tuple) else [named]
    if not any(_is_open(shape[int(d)]) for d in dims):  # type: ignore[arg-type]
        return False
    return not (packet is aten.slice and is_whole(node))


def _sums_tokens(node: fx.Node) -> bool:
    terms, _, result = str(node.args[0]).replace(" ", "").partition("->")
    pairs = zip(terms.split(","), node.args[1], strict=True)  # type: ignore[arg-type]
    return any(
        _is_open(size) and letter not in result
        for letters, operand in pairs
        for letter, size in zip(letters, value_of(operand).shape, strict=False)
    )


def _is_open(size: Any) -> bool:
    """Whether a size is one of tokens: not known when the model is captured."""
    return not isinstance(size, int)


def _is_float(node: Any) -> bool:
    return any(v.is_floating_point() for v in _tensors(value_of(node)))


def _tensors(value: Any) -> list[Tensor]:
    return [v for v in pytree.tree_leaves(value) if isinstance(v, Tensor)]
