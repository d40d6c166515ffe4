"""Mixtures of experts that a model writes out in plain operators: matrices of one shape beside each other, each behind
a gate of its own that a selection opens.

Nothing is rewritten here: `find-experts` does. A graph may hold such a mixture in any form (a loop over the experts, a
mask, a dispatch, a look-up of weights); what all have in common is that a top-k, a maximum or a comparison decides
which of them count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from moec.program.moe_call import EXPERTS, MOE
from moec.program.program import Program
from moec.recognition.linear import value_of
from moec.recognition.matrices import Matrix, find_matrices

aten = torch.ops.aten
_TOP = {aten.topk.default: 1}  # position of k
_ONE = (aten.max.dim, aten.argmax.default)
_OTHER = (
    aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable, aten.kthvalue.default,
    aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor, aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar,
    aten.le.Tensor,
)  # fmt: skip
_STACKS = (aten.stack.default, aten.cat.default)
# what still keeps experts apart that were stacked
_CARRIES = (
    *_STACKS, aten.view.default, aten.reshape.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.flatten.using_ints, aten.unflatten.int, aten.contiguous.default, aten.clone.default,
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One expert's part in a matrix: the matrix, and which of its stack; None for the whole."""

    matrix: Matrix
    part: int | None = None

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.matrix.names[self.part or 0]


@dataclass(frozen=True)
class HandWritten:
    """A mixture of experts in plain operators.

    Attributes:
        module: what its experts' names have in common. top_k: how many a token goes to; 0 where the graph does not say.
        experts: the matrices of each expert. selection: the node that chooses among them.
    """

    module: str
    top_k: int
    experts: tuple[tuple[Place, ...], ...]
    selection: fx.Node = field(repr=False)

    @property
    def products(self) -> set[fx.Node]:
        """The operators that read the experts' matrices."""
        return {product for places in self.experts for place in places for product in place.matrix.products}


def find_hand_written(program: Program, matrices: Sequence[Matrix] | None = None) -> list[HandWritten]:
    """Every mixture in a program that is no operator of the dialect, in graph order."""
    matrices = find_matrices(program) if matrices is None else matrices
    groups = [g for g in _groups(matrices) if len(g.places) > 1]
    if not groups or not any(_is_selection(node) for node in program.graph.nodes):
        return []
    flow = _Flow(program, matrices, groups)
    blocks: dict[str, list[_Group]] = defaultdict(list)
    choices: dict[str, fx.Node] = {}
    for group in groups:
        if selection := flow.selected(group):
            blocks[f"{group.module} {len(group.places)}"].append(group)
            choices.setdefault(f"{group.module} {len(group.places)}", selection)
    return [
        HandWritten(
            found[0].module, _chosen(choices[key]), tuple(zip(*(g.places for g in found), strict=True)), choices[key]
        )
        for key, found in blocks.items()
    ]


@dataclass(frozen=True)
class _Group:
    """Matrices that may be those of experts: names that differ in one number alone, or the parts of a stack."""

    module: str
    places: tuple[Place, ...]


def _groups(matrices: Sequence[Matrix]) -> Iterator[_Group]:
    found: dict[tuple[str, str, str], list[tuple[int, Place]]] = defaultdict(list)
    for matrix in matrices:
        if any(product.target in (EXPERTS, MOE) for product in matrix.products):
            continue
        if matrix.parts:
            module = _stack_module(matrix)
            yield _Group(module, tuple(Place(matrix, k) for k in range(len(matrix.parts))))
            continue
        words = matrix.name.split(".")
        for k, word in enumerate(words):
            if number := word.lstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"):
                stem = word[: len(word) - len(number)]
                if number.isdigit() and (not stem or len(stem) > 1):  # w1, w2 and w3 are no three experts
                    key = (".".join(words[:k]), stem, ".".join(words[k + 1 :]))
                    found[key].append((int(number), Place(matrix)))
    for (module, stem, rest), numbered in found.items():
        name = _module([*filter(None, module.split(".")), *filter(None, [stem.strip("_")])], bool(rest))
        for places in _alike(numbered):
            yield _Group(name, tuple(place for _, place in sorted(places, key=lambda p: p[0])))


def _alike(numbered: list[tuple[int, Place]]) -> list[list[tuple[int, Place]]]:
    """Matrices of one name but for a number, apart by shape; together where they only have widths of their own."""
    shapes: dict[tuple[int, ...], list[tuple[int, Place]]] = defaultdict(list)
    for number, place in numbered:
        shapes[tuple(value_of(place.matrix.node).shape)].append((number, place))
    sides = list(zip(*shapes, strict=True)) if len({len(shape) for shape in shapes}) == 1 else []
    own_widths = len(sides) == 2 and min(len(set(side)) for side in sides) == 1
    alone = len({number for number, _ in numbered}) == len(numbered)
    return [numbered] if own_widths and alone else list(shapes.values())


def _stack_module(matrix: Matrix) -> str:
    first, last = matrix.parts[0].split("."), matrix.parts[-1].split(".")
    number = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return _module(first[:number], number < len(first) - 1)


def _module(words: list[str], of_modules: bool) -> str:
    """What holds the experts: a list of modules, or the module whose parameters are stacks of matrices."""
    return ".".join(words if of_modules else words[:-1])


def _is_selection(node: fx.Node) -> bool:
    if node.target not in (*_TOP, *_ONE, *_OTHER):
        return False
    scores = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
    return isinstance(scores, torch.Tensor) and scores.is_floating_point()


def _chosen(selection: fx.Node) -> int:
    if selection.target in _TOP:
        k = selection.args[1]
        return k if isinstance(k, int) else 0
    return 1 if selection.target in _ONE else 0


class _Flow:
    """What hangs on what in a graph, as sets of bits: one a product with a matrix, one a selection."""

    def __init__(self, program: Program, matrices: Sequence[Matrix], groups: Sequence[_Group]) -> None:
        nodes = list(program.graph.nodes)
        products = {product: None for matrix in matrices for product in matrix.products}
        self._selections = [node for node in nodes if _is_selection(node)]
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

    def selected(self, group: _Group) -> fx.Node | None:
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
