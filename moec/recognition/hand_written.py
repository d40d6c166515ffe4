"""Mixtures of experts that a model writes out in plain operators: matrices of one shape beside each other, each behind
a gate of its own that a selection opens.

Nothing is rewritten here: `find-experts` does. A graph may hold such a mixture in any form (a loop over the experts, a
mask, a dispatch, a look-up of weights); what all have in common is that a top-k, a maximum or a comparison decides
which of them count.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_

import torch
from torch import fx

from moec.program.program import Program
from moec.recognition.hand_written_groups import Group, Place, groups_of
from moec.recognition.linear import value_of
from moec.recognition.matrices import Matrix, find_matrices

aten = torch.ops.aten
_TOP = {aten.topk.default: 1}  # position of k
_ONE = (aten.max.dim, aten.argmax.default)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_GATES = (aten.sigmoid.default, aten.relu.default, aten.softplus.default, aten.tanh.default)
_ALL = (*_SOFTMAX, *_GATES)  # weighs all that there are: every expert runs for every token
_OTHER = (
    aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable, aten.kthvalue.default,
    aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor, aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar,
    aten.le.Tensor,
)  # fmt: skip
_NUMBER = aten.eq.Scalar
_STACKS = (aten.stack.default, aten.cat.default)
# what still keeps experts apart that were stacked
_CARRIES = (
    *_STACKS, aten.view.default, aten.reshape.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.flatten.using_ints, aten.unflatten.int, aten.contiguous.default, aten.clone.default,
)  # fmt: skip


@dataclass(frozen=True)
class HandWritten:
    """A mixture of experts in plain operators.

    Attributes:
        module: what its experts' names have in common. top_k: how many a token goes to; 0 where the graph does not say.
        experts: the matrices of each expert. selection: the node that chooses among them, or one that weighs all.
    """

    module: str
    top_k: int
    experts: tuple[tuple[Place, ...], ...]
    selection: fx.Node = field(repr=False)

    @property
    def runs_all(self) -> bool:
        """Whether nothing is chosen: a softmax, or gates, weigh all experts for every token."""
        return self.selection.target in _ALL

    @property
    def by_number(self) -> bool:
        """Whether experts are chosen by whole numbers that nothing ranks."""
        return self.selection.target is _NUMBER

    @property
    def products(self) -> set[fx.Node]:
        """The operators that read the experts' matrices."""
        return {product for places in self.experts for place in places for product in place.matrix.products}


def find_hand_written(program: Program, matrices: Sequence[Matrix] | None = None) -> list[HandWritten]:
    """Every mixture in a program that is no operator of the dialect, in graph order."""
    matrices = find_matrices(program) if matrices is None else matrices
    groups = groups_of(matrices)
    found = _opened_by(program, matrices, groups, [n for n in program.graph.nodes if _is_selection(n)])
    taken = {place.matrix.node for group, _ in found for place in group.places}
    left = [group for group in groups if not taken.intersection(place.matrix.node for place in group.places)]
    over_all = [n for n in program.graph.nodes if _weighs_all(n, {len(group.places) for group in left})]
    found += _opened_by(program, matrices, left, over_all)
    taken |= {place.matrix.node for group, _ in found for place in group.places}
    left = [g for g in left if not g.named and not taken.intersection(place.matrix.node for place in g.places)]
    found += _opened_by(program, matrices, [g for g in left if g.places[0].part is None], _by_number(program))
    blocks: dict[str, list[Group]] = defaultdict(list)
    choices: dict[str, fx.Node] = {}
    for group, selection in found:
        key = f"{group.module} {len(group.places)}"
        blocks[key].append(group)
        choices.setdefault(key, selection)
    return [
        HandWritten(
            own[0].module,
            _chosen(choices[key], len(own[0].places)),
            tuple(zip(*(g.places for g in own), strict=True)),
            choices[key],
        )
        for key, own in blocks.items()
        if len(own) > 1 or choices[key].target not in _ALL  # one matrix a number is no network: heads, or groups
    ]


def _opened_by(
    program: Program, matrices: Sequence[Matrix], groups: Sequence[Group], selections: Sequence[fx.Node]
) -> list[tuple[Group, fx.Node]]:
    """The groups that one of these selections opens, with it."""
    if not groups or not selections:
        return []
    return _once(_selected(_Flow(program, matrices, groups, selections), groups))


def _selected(flow: _Flow, groups: Sequence[Group]) -> Iterator[tuple[Group, fx.Node]]:
    """The groups that a selection opens, with it. Out of those by a word, the experts are taken: no more than the
    selection has scores, for tokens of attention that a selection masks have a number that no graph says."""
    for group in groups:
        for places in flow.beside_each_other(group.places) if group.named else [list(group.places)]:
            opened = replace(group, places=tuple(flow.gated(places))) if group.named else group
            selection = flow.selected(opened) if len(opened.places) > 1 else None
            if selection and _fits(opened, selection):
                yield opened, selection


def _fits(group: Group, selection: fx.Node) -> bool:
    """Whether a selection may be that of a group. What weighs all has a weight for each expert, or for each of its
    slots (Soft MoE)."""
    experts, scores = len(group.places), _scores(selection)
    if selection.target in _ALL:
        return scores == experts or (not group.named and scores % experts == 0)
    return experts <= scores or not group.named


def _once(found: Iterator[tuple[Group, fx.Node]]) -> list[tuple[Group, fx.Node]]:
    """The same, each matrix with the most that are like it: of `math_1`, `math_2`, `code_1` and `code_2`, all four."""
    kept: list[tuple[Group, fx.Node]] = []
    taken: dict[fx.Node, bool] = {}  # matrices, and whether it was by a word
    pairs = list(found)
    for group, selection in sorted(pairs, key=lambda pair: -len(pair[0].places)):
        own = {place.matrix.node for place in group.places}
        if any(taken[m] or group.named for m in own if m in taken):
            continue
        taken |= dict.fromkeys(own, group.named)
        kept.append((group, selection))
    return [pair for pair in pairs if pair in kept]


def _is_selection(node: fx.Node) -> bool:
    if node.target not in (*_TOP, *_ONE, *_OTHER):
        return False
    scores = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    return isinstance(scores, torch.Tensor) and scores.is_floating_point()


def _by_number(program: Program) -> list[fx.Node]:
    """Comparisons of one tensor of whole numbers with several: tokens that a table, or their own number, sends to an
    expert each (Hash layers, https://arxiv.org/abs/2106.04426)."""
    found: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in program.graph.nodes:
        source = node.args[0] if node.target is _NUMBER else None
        if not isinstance(source, fx.Node):
            continue
        value = source.meta.get("val")
        if isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool:
            found[source].append(node)
    return [node for nodes in found.values() if len({node.args[1] for node in nodes}) > 1 for node in nodes]


def _weighs_all(node: fx.Node, experts: Set[int]) -> bool:
    """Whether a node may give each of so many experts a weight: a softmax of any width, since experts may have several
    slots, or what gives a number for each, as activations do of other widths."""
    if node.target in _SOFTMAX:
        return _scores(node) > 1 and max(experts, default=0) > 1
    return node.target in _GATES and _scores(node) > 1 and _scores(node) in experts


def _scores(selection: fx.Node) -> float:
    """How many a ranking chooses from, 0 where that is a size of the input; a comparison may be one of each expert."""
    if selection.target not in (*_TOP, *_ONE, *_ALL):
        return math.inf
    width = value_of(selection.args[0]).shape[[*selection.args, -1, -1][2 if selection.target in _TOP else 1]]
    return width if isinstance(width, int) else 0


def _chosen(selection: fx.Node, experts: int) -> int:
    if selection.target in _ALL:
        return experts
    if selection.target in _TOP:
        k = selection.args[1]
        return k if isinstance(k, int) else 0
    return 1 if selection.target in _ONE else 0


class _Flow:
    """What hangs on what in a graph, as sets of bits: one a product with a matrix, one a selection."""

    def __init__(
        self, program: Program, matrices: Sequence[Matrix], groups: Sequence[Group], selections: Sequence[fx.Node]
    ) -> None:
        nodes = list(program.graph.nodes)
        products = {product: None for matrix in matrices for product in matrix.products}
        self._selections = selections
        self._bit = {node: 1 << k for k, node in enumerate([*products, *self._selections])}
        self._products = sum(self._bit[p] for p in products)
        self._of_groups = {p for g in groups for place in g.places for p in place.matrix.products}
        self._before: dict[fx.Node, int] = {}  # products and selections that a node's value hangs on, its own too
        self._gates: dict[fx.Node, int] = {}  # selections that a node carries on, untouched by what they select
        for node in nodes:
            self._enter(node)

    def _enter(self, node: fx.Node) -> None:
        before = self._bit.get(node, 0)
        for source in node.all_input_nodes:
            before |= self._before[source]
        self._before[node] = before
        gates = 0
        for selection in self._selections:
            if selection is node:
                gates |= self._bit[node]
            elif any(self._gates[s] & self._bit[selection] for s in node.all_input_nodes):
                known = self._before[selection]
                if not before & self._products & ~known:  # nothing in it was computed after the choice
                    gates |= self._bit[selection]
        self._gates[node] = gates

    def beside_each_other(self, places: Sequence[Place]) -> list[list[Place]]:
        """Places apart by which of the others they come behind: layers before, experts, layers after."""
        own = [sum(self._bit[p] for p in place.matrix.products) for place in places]
        found: dict[int, list[Place]] = defaultdict(list)
        for place, bits in zip(places, own, strict=True):
            before = [self._before[p] & sum(own) & ~bits for p in place.matrix.products]
            found[reduce(or_, before)].append(place)
        return list(found.values())

    def gated(self, places: Sequence[Place]) -> list[Place]:
        """Those whose way some selection opens."""
        own = [sum(self._bit[p] for p in place.matrix.products) for place in places]
        return [place for place in places if self._gate(place, own) is not None]

    def selected(self, group: Group) -> fx.Node | None:
        """The selection that opens each one's gate; None where they have none, or share one."""
        stacked = group.places[0].part is not None
        places = group.places[:1] if stacked else group.places
        own = [sum(self._bit[p] for p in place.matrix.products) for place in places]
        if any(self._before[p] & sum(own) & ~o for o, q in zip(own, places, strict=True) for p in q.matrix.products):
            return None  # one follows another: layers
        gates = [self._gate(place, own) for place in places]
        if any(gate is None for gate in gates):
            return None
        found = [gate for gate in gates if gate is not None]
        together = stacked or all(kept for _, _, kept in found)
        if not together and len({gate for gate, _, _ in found}) < len(found):
            return None
        return found[0][1]

    def _gate(self, place: Place, own: list[int]) -> tuple[fx.Node, fx.Node, bool] | None:
        """The node that opens an expert's way, the selection that it comes from, and whether all experts stand in one
        tensor there."""
        todo = [(product, place.part is not None) for product in place.matrix.products]
        seen = set(place.matrix.products)
        while todo:
            node, kept = todo.pop(0)
            if found := self._opened(node, place.matrix.products[0]):
                return (*found, kept)
            shared = sum(bool(self._before[node] & bits) for bits in own) > 1
            carries = node.target in _CARRIES and (kept or node.target in _STACKS)
            foreign = node in self._bit and node not in self._of_groups  # another layer's product, another choice
            if (shared and not carries) or foreign:
                continue
            for user in node.users:
                if user not in seen and user.op != "output":
                    seen.add(user)
                    todo.append((user, kept or (shared and carries) or user.target in _STACKS))
        return None

    def _opened(self, node: fx.Node, product: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        for source in node.all_input_nodes:
            own = [
                s
                for s in self._selections
                if self._gates[source] & self._bit[s] and not self._before[s] & self._bit[product]
            ]
            if own:  # the last choice by rank is that of experts: one before it is of groups
                ranks = [s for s in own if s.target in _TOP or s.target in _ONE]
                return source, (ranks[-1] if ranks else own[0])
        return None
