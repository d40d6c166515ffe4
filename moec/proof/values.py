"""What inputs cannot reach is compared by value: the constants of an engine's file with those of its program, and the
program's weights with the untouched model's own tensors. One tensor of each side is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from moec.program.program import Program
from moec.proof.wiring import strange_operator
from moec.targets.backend import Constant
from moec.weights.difference import bits_of, fingerprint, first_difference
from moec.weights.lazy import Weight, cast, from_tensor

SMALL = 4096  # elements: what lowering makes of its own, as shapes and tables of codes, is no larger


@dataclass(frozen=True)
class Finding:
    """One constant that is not what it stands for.

    Attributes:
        name: of the constant. what: the row, the element and both values, in words.
    """

    name: str
    what: str


# ---------------------------------------------------------------------- the engine's file and its program
def compare_file(held: Mapping[str, Constant], due: Mapping[str, Constant]) -> Iterator[Finding]:
    """The constants of a file that are not those that lowering its program gives.

    Where the two do not have the same names, perhaps since another version of the exporter wrote the file, what has no
    counterpart by name is looked for by content, and the operators have to be wired alike.
    """
    same_names = held.keys() == due.keys()
    lost: list[Constant] = []
    for name in sorted(due.keys() & held.keys()) if not same_names else due:
        found = _compare(held[name], due[name])
        if found and not same_names and not due[name].lazy:
            lost.append(held[name])
        elif found:
            yield found
    if not same_names:
        lost += [held[name] for name in sorted(held.keys() - due.keys())]
        yield from _untraced([c for c in lost if c.weight is not None], due)
        yield from _missing(held, due)
        strange = strange_operator(held, due, _content)
        if strange is not None:
            yield Finding(strange.name, f"lowering here and now gives no such operator: `{strange.text}`")


def _compare(held: Constant, due: Constant) -> Finding | None:
    if held.weight is None or due.weight is None:
        same = held.text == due.text and held.weight is due.weight
        return None if same else Finding(due.name, f"the operator is `{held.text}`, not `{due.text}`")
    if held.form != due.form:
        return Finding(due.name, f"it is {held.dtype}{list(held.shape)}, not {due.dtype}{list(due.shape)}")
    place = first_difference(due.weight, held.weight)
    return None if place is None else Finding(due.name, str(place))


def _untraced(held: Iterable[Constant], due: Mapping[str, Constant]) -> Iterator[Finding]:
    wanted = list(held)
    forms = {constant.form for constant in wanted}
    known = {_content(c) for c in due.values() if c.weight is not None and c.form in forms}
    for constant in wanted:
        if _content(constant) not in known:
            yield Finding(constant.name, "it cannot be traced to the model")


def _missing(held: Mapping[str, Constant], due: Mapping[str, Constant]) -> Iterator[Finding]:
    missing = [due[name] for name in due.keys() - held.keys() if due[name].lazy]
    forms = {constant.form for constant in missing}
    there = {_content(c) for c in held.values() if c.weight is not None and c.form in forms}
    for constant in missing:
        if _content(constant) not in there:
            yield Finding(constant.name, "the engine does not hold it")


def _content(constant: Constant) -> str:
    digest = sha256(repr(constant.form).encode())
    assert constant.weight is not None
    for block in constant.weight.blocks():
        digest.update(bits_of(block).reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------------- what lowering made of the program
def compare_lowering(due: Mapping[str, Constant], program: Program) -> Iterator[Finding]:
    """The constants that lowering gives which are not the program's weights: a weight under its own name is compared
    element by element, one that was moved (transposed, joined, cut) by its elements in any order, and a large one that
    no weight went into cannot be traced."""
    own = {id(weight): name for name, weight in program.weights.items()}
    moved: list[tuple[Constant, list[Weight]]] = []
    for constant in due.values():
        weight = constant.weight
        if weight is None or id(weight) in own:
            continue
        named = program.weights.get(constant.name)
        if named is not None and (named.shape, named.dtype) == (weight.shape, weight.dtype):
            place = first_difference(named, weight)
            if place:
                yield Finding(constant.name, str(place))
        elif constant.lazy:
            roots, strangers = roots_of(weight, own)
            if any(w.size_bytes > SMALL * w.dtype.itemsize for w in strangers):
                yield Finding(constant.name, "it cannot be traced to the model")
            elif roots:
                moved.append((constant, roots))
    for constants, roots in _together(moved):
        yield from _moved(constants, roots)


def roots_of(weight: Weight, own: Mapping[int, str]) -> tuple[list[Weight], list[Weight]]:
    """The weights of a program that went into an expression, and tensors in it that are none."""
    roots, strangers, todo, seen = [], [], [weight], set[int]()
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if id(part) in own:
            roots.append(part)
        elif part.inputs:
            todo += part.inputs
        else:
            strangers.append(part)
    return roots, strangers


def _together(moved: list[tuple[Constant, list[Weight]]]) -> list[tuple[list[Constant], list[Weight]]]:
    """Constants that share a weight (the experts of one stack), with all weights that went into them."""
    groups: list[tuple[list[Constant], dict[int, Weight]]] = []
    group_of: dict[int, int] = {}
    for constant, roots in moved:
        mine = sorted({group_of[id(r)] for r in roots if id(r) in group_of})
        at = mine[0] if mine else len(groups)
        if not mine:
            groups.append(([], {}))
        for other in mine[1:]:
            groups[at][0].extend(groups[other][0])
            groups[at][1].update(groups[other][1])
            groups[other] = ([], {})
        groups[at][0].append(constant)
        groups[at][1].update({id(r): r for r in roots})
        group_of |= dict.fromkeys(groups[at][1], at)
    return [(constants, list(roots.values())) for constants, roots in groups if constants]


def _moved(constants: list[Constant], roots: list[Weight]) -> Iterator[Finding]:
    """Whether constants hold the elements of these weights, where they hold as many in the same dtype: others are
    computed."""
    weights = [c.weight for c in constants if c.weight is not None]
    counts = [sum(w.size_bytes for w in side) for side in (weights, roots)]
    if counts[0] != counts[1] or len({w.dtype for w in (*weights, *roots)}) != 1:
        return
    if fingerprint(weights) != fingerprint(roots):
        names = ", ".join(c.name for c in constants[:3])
        yield Finding(constants[0].name, f"{names} do not hold the numbers of {roots[0].origin}")


# ---------------------------------------------------------------------- the program and the untouched model
def compare_source(captured: Program, tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    """The weights of a captured program that are not the untouched model's tensors of the same names, in the program's
    dtype. One whose elements capturing brings into another order is compared by its elements in any order."""
    for name, weight in same_names(captured, tensors).items():
        tensor = cast(from_tensor(tensors[name].cpu(), name), weight.dtype)
        if tensor.shape == weight.shape and not any(w.relaid for w in weight.expression()):
            place = first_difference(tensor, weight)
            if place:
                yield Finding(name, str(place))
        elif tensor.size_bytes == weight.size_bytes and fingerprint([tensor]) != fingerprint([weight]):
            yield Finding(name, "it does not hold the numbers of the model's tensor")


def same_names(captured: Program, tensors: Mapping[str, Tensor]) -> dict[str, Weight]:
    """The weights that are compared, each once: two names may stand for one."""
    once = {id(weight): name for name, weight in reversed(captured.weights.items()) if name in tensors}
    return {name: captured.weights[name] for name in once.values()}


def compare_passes(captured: Program, program: Program) -> Iterator[Finding]:
    """The weights that an exact pipeline left under their names and forms, and that have other values."""
    for name, weight in program.weights.items():
        before = captured.weights.get(name)
        if before is None or before is weight or (before.shape, before.dtype) != (weight.shape, weight.dtype):
            continue
        place = first_difference(before, weight)
        if place:
            yield Finding(name, str(place))
