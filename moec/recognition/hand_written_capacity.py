"""The capacity of a mixture in plain operators: which node says what its experts have room for, and by which rule.

Places in an expert's line are counted by a cumulative sum, and compared with a number. Only operators that count are
followed, and what they count is compared with `moec.dialect.capacity` on drawn choices; what a comparison keeps is then
an input of the mixture, which is proven for any choice that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from moec.dialect.capacity import ORDERS, places_of
from moec.program.program import Program
from moec.recognition.interpret import Sizes, inputs_of, run, sizes
from moec.recognition.linear import is_whole, value_of

aten = torch.ops.aten
# comparison of a place with a limit: whether it is true for what is kept, and the last such place less the limit
_BOUNDS: dict[Any, tuple[bool, int]] = {
    aten.le.Scalar: (True, 0),
    aten.lt.Scalar: (True, -1),
    aten.gt.Scalar: (False, 0),
    aten.ge.Scalar: (False, -1),
}
_COUNTS = (aten.cumsum, aten.sum)
# operators that count with whole numbers, or change a form: nothing here compares or bounds
_FOLLOWED = (
    *_COUNTS, aten.one_hot, aten.eq, aten.mul, aten.add, aten.sub, aten.to, aten._to_copy, aten.view, aten.reshape,
    aten.permute, aten.transpose, aten.t, aten.numpy_T, aten.unsqueeze, aten.squeeze, aten.expand, aten.flatten,
    aten.clone, aten.contiguous, aten.gather, aten.select, aten.arange, aten.stack, aten.cat, aten.slice,
    aten.zeros_like, aten.zeros, aten.new_zeros, aten.scatter,
)  # fmt: skip
_WIDE = (torch.int32, torch.int64, torch.float32, torch.float64)  # else long lines wrap, or are rounded
_LEAST = (7, 5, 41)  # tokens of the trials


@dataclass(frozen=True)
class Kept:
    """Where a mixture says which choices are kept.

    Attributes:
        node: a comparison of places. says: what it is for those that are kept.
        limit: the number that it compares with, or the node that has it. extra: what the last place that is kept is
            more than that.
        order: see `moec.dialect.capacity.Capacity`. whole: whether all tokens are in one line, not each leading index.
        layout: how its value lies, see `_LAYOUTS`. own: the nodes that serve it alone, itself among them.
    """

    node: fx.Node
    says: bool
    limit: int | fx.Node
    extra: int
    order: str
    whole: bool
    layout: str
    own: frozenset[fx.Node]

    def of(self, value: Tensor, ids: Tensor, experts: int) -> Tensor:
        """Which choices `ids` `[N, K]` a value of the node keeps."""
        return _LAYOUTS[self.layout](value, ids, experts) == self.says

    def drawn(self, generator: torch.Generator, size: Sizes) -> Tensor:
        """A value that the node might have."""
        return torch.rand([size(s) for s in value_of(self.node).shape], generator=generator) < 0.6


def find_kept(program: Program, own: Sequence[fx.Node], selection: fx.Node, experts: int) -> Kept | None:
    """The one comparison of places among some nodes, where it is such a capacity; else None.

    Args:
        own: the nodes of a mixture, in graph order. selection: what chooses its experts, of whom there are so many.
    """
    ids = _ids(selection)
    bounds = [n for n in own if n.target in _BOUNDS and _counts(n.args[0])]
    if ids is None or len(bounds) != 1 or not _is_size(bounds[0].args[1]):
        return None
    node = bounds[0]
    before = _before(node.args[0], ids, own)
    if before is None:
        return None
    fits = set(_possible(experts))
    for least in _LEAST:
        try:
            fits &= set(_fitting(program, before, node.args[0], ids, experts, least))
        except Exception:  # an operator that reads something else, or does not fit drawn choices
            return None
    if not fits:
        return None
    order, whole, layout, start = min(fits, key=str)
    says, last = _BOUNDS[node.target]
    limit: Any = node.args[1]
    return Kept(node, says, limit, last - start, order, whole, layout, _serving(node, own))


# ---------------------------------------------------------------------- structure
def _ids(selection: fx.Node) -> fx.Node | None:
    if selection.target is aten.argmax.default:
        return selection
    found = [user for user in selection.users if user.args[1:] == (1,)]
    return found[0] if len(found) == 1 else None


def _counts(node: Any, sums: tuple[Any, ...] = (aten.cumsum,)) -> bool:
    """Whether a value hangs on a cumulative sum, or on other `sums`, as far as operators that count go."""
    todo, seen = [node], set[fx.Node]()
    while todo:
        n = todo.pop()
        packet = getattr(n.target, "overloadpacket", None) if isinstance(n, fx.Node) else None
        if packet in sums:
            return True
        if packet in _FOLLOWED and n not in seen:
            seen.add(n)
            todo += n.all_input_nodes
    return False


def _is_size(limit: Any) -> bool:
    """Whether a limit is a whole number that hangs on sizes of inputs alone."""
    value = limit.meta.get("val") if isinstance(limit, fx.Node) else limit
    if isinstance(value, torch.SymInt):
        return not free_unbacked_symbols(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _before(end: Any, ids: fx.Node, own: Sequence[fx.Node]) -> list[fx.Node] | None:
    """The nodes between ids and a value, in graph order; None where one does more than count."""
    found, todo, some = set[fx.Node](), [end], set(own)
    while todo:
        node = todo.pop()
        if node is ids or node in found:
            continue
        if node not in some or not _may_count(node):
            return None
        found.add(node)
        todo += inputs_of(node)
    sums = {n for n in found if _counts(n)}
    compared = [n for n in found if n.target.overloadpacket is aten.eq and set(n.all_input_nodes) & sums]  # type: ignore[union-attr]
    return None if compared else [n for n in own if n in found]


def _may_count(node: fx.Node) -> bool:
    value = node.meta.get("val")
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in _FOLLOWED or not isinstance(value, Tensor):
        return False
    if packet is aten.slice and not is_whole(node):
        return False
    whole = not value.is_floating_point() and not _counts(node, (*_COUNTS, aten.arange))
    return whole or value.dtype in (*_WIDE, torch.bool)


def _serving(node: fx.Node, own: Sequence[fx.Node]) -> frozenset[fx.Node]:
    found = {node}
    for n in reversed(own):
        if n.users and all(user in found for user in n.users):
            found.add(n)
    return frozenset(found)


# ---------------------------------------------------------------------- value
_Fit = tuple[str, bool, str, int]  # order, whole, layout, the place of the first in line less 1
_LAYOUTS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "TK": lambda v, ids, e: v.reshape(ids.shape),
    "KT": lambda v, ids, e: v.reshape(ids.shape[::-1]).T,
    "TE": lambda v, ids, e: v.reshape(len(ids), e).gather(1, ids),
    "ET": lambda v, ids, e: v.reshape(e, len(ids)).T.gather(1, ids),
    "TKE": lambda v, ids, e: v.reshape(*ids.shape, e).gather(2, ids[..., None])[..., 0],
    "KTE": lambda v, ids, e: v.reshape(*ids.shape[::-1], e).transpose(0, 1).gather(2, ids[..., None])[..., 0],
}


def _possible(experts: int) -> Iterator[_Fit]:
    for order in ORDERS:
        for whole in (True, False):
            for layout in _LAYOUTS:
                for start in (-1, 0):
                    yield order, whole, layout, start


def _fitting(
    program: Program, before: Sequence[fx.Node], end: Any, ids: fx.Node, experts: int, least: int
) -> Iterator[_Fit]:
    """The rules by which the counted places are those that were counted, on drawn choices."""
    size = sizes(least)
    chosen = _drawn(ids, experts, size, least)
    value = run(program, before, {ids: chosen}, size)[end]
    rows = chosen if _has_choices(ids) else chosen.unsqueeze(-1)
    flat = rows.reshape(-1, rows.shape[-1])
    for order, whole, layout, start in _possible(experts):
        if not whole and rows.dim() == 2:
            continue  # there is one line
        places = places_of(flat if whole else rows, experts, None, order).reshape(flat.shape)
        try:
            found = _LAYOUTS[layout](value, flat, experts)
        except RuntimeError:  # a layout of other sizes
            continue
        if torch.equal(found.double(), (places + start).double()):
            yield order, whole, layout, start


def _has_choices(ids: fx.Node) -> bool:
    """Whether ids have a dimension of choices: those of a top-k, not of a maximum without it."""
    return isinstance(value_of(ids).shape[-1], int)


def _drawn(ids: fx.Node, experts: int, size: Sizes, seed: int) -> Tensor:
    """Choices as a selection makes them, those of a token distinct."""
    shape = [size(s) for s in value_of(ids).shape]
    generator = torch.Generator().manual_seed(seed)
    lead, count = (shape[:-1], shape[-1]) if _has_choices(ids) else (shape, 1)
    scores = torch.rand(*lead, experts, generator=generator) * torch.arange(1, experts + 1)
    return scores.topk(count, -1).indices.reshape(shape)
