"""Matrices that may be those of a mixture's experts, by their names and shapes alone; whether they are is seen by what
the graph does with them, in `moec.recognition.hand_written`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moec.program.moe_call import EXPERTS, MOE
from moec.recognition.linear import value_of
from moec.recognition.matrices import Matrix

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"


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
class Group:
    """Matrices that may be those of experts.

    Attributes:
        module: what their names have in common. places: one for each expert.
        named: their names differ in a word, not in a number: experts and others may stand side by side in it.
    """

    module: str
    places: tuple[Place, ...]
    named: bool = False


def groups_of(matrices: Sequence[Matrix]) -> list[Group]:
    """Every two matrices or more whose names differ in one word alone, and the parts of every stack; those that differ
    in a word behind those that differ in a number."""
    found = [m for m in matrices if not any(product.target in (EXPERTS, MOE) for product in m.products)]
    stacks = [m for m in found if m.parts]
    own = [m for m in found if not m.parts]
    groups = [Group(_stack_module(m), tuple(Place(m, k) for k in range(len(m.parts)))) for m in stacks]
    return [group for group in (*groups, *_numbered(own), *_named(own)) if len(group.places) > 1]


def _numbered(matrices: Sequence[Matrix]) -> Iterator[Group]:
    found: dict[tuple[str, str, str], list[tuple[int, Place]]] = defaultdict(list)
    for matrix in matrices:
        words = matrix.name.split(".")
        for k, word in enumerate(words):
            if (stem := _stem(word)) is not None:
                key = (".".join(words[:k]), stem, ".".join(words[k + 1 :]))
                found[key].append((int(word[len(stem) :]), Place(matrix)))
    for (module, stem, rest), numbered in found.items():
        name = _module([*filter(None, module.split(".")), *filter(None, [stem.strip("_")])], bool(rest))
        for places in _alike(numbered):
            yield Group(name, tuple(place for _, place in sorted(places, key=lambda p: p[0])))


def _stem(word: str) -> str | None:
    """What stands before a word's number; None where there is none. A single letter does not count: w1, w2 and w3 are
    no three experts."""
    number = word.lstrip(_LETTERS)
    stem = word[: len(word) - len(number)]
    return stem if number.isdigit() and len(stem) != 1 else None


def _named(matrices: Sequence[Matrix]) -> Iterator[Group]:
    """Matrices of modules with names of their own, as a `ModuleDict` holds them, in the order in which these run."""
    found: dict[tuple[str, str], list[tuple[int, Place]]] = defaultdict(list)
    order: dict[tuple[str, str], int] = {}  # of one module's parts, so that each matrix has the experts in one order
    stems: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    for matrix in sorted(matrices, key=lambda m: m.products[0]):
        words = matrix.name.split(".")
        for k, word in enumerate(words):
            before = ".".join(words[:k])
            key = (before, ".".join(words[k + 1 :]))
            found[key].append((order.setdefault((before, word), len(order)), Place(matrix)))
            stems[key].add(_stem(word))
    for key, places in found.items():
        name = _module(key[0].split("."), bool(key[1]))
        if len(stems[key]) > 1 or None in stems[key]:  # all others are numbered
            for alike in _alike(places):
                yield Group(name, tuple(place for _, place in sorted(alike, key=lambda p: p[0])), named=True)


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
