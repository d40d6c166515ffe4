"""What torch.export assumes of every size without being told by the model: that it is neither 0 nor 1.

A condition that fails only where some size in the graph is 0 or 1 is such an assumption, and no reason to refuse inputs
that the model takes and the graph runs on. It is dropped where the graph does run there; a proof is then made there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from moec.frontend.relations import say
from moec.program.conditions import Condition, nearest, stated
from moec.program.expression import Function, read
from moec.program.program import META, Program, dynamic_dimensions
from moec.program.signature import identifier

TRACE_SIZES = (3, 11, 7, 13, 17, 19)  # of dynamic dimensions, where any will do
# sizes at which a condition is looked at, by the number of dimensions in it
_LOOKED_AT = {
    1: (*range(300), 512, 1000, 4096, 131_072),
    2: (*range(40), 64, 100, 1000, 4096, 131_072),
    3: (*range(9), 16, 31, 100, 4096),
}
_PLAIN = {1: 100, 2: 12}  # largest number in a condition that so many sizes in a row go well beyond
_FEW = (0, 1, 2, 3, 8, 31, 4096)

Sizes = dict[str, int]
Functions = Mapping[Function, frozenset[str]]  # sizes in the graph, with the dimensions that each is made of


def settle(
    program: Program, conditions: Iterable[Condition], sizes: Iterable[sympy.Expr]
) -> tuple[tuple[Condition, ...], tuple[Sizes, ...]]:
    """The conditions that are the model's, and the sizes at which others, which are torch's own, do not hold.

    Args:
        program: on the meta device; it is run there.
        conditions: all that torch stated.
        sizes: of the tensors in the graph, by the names of the dimensions.
    """
    texts = {_text(size) for size in sizes}
    functions = {read(text)[2]: read(text)[1] for text in texts if text is not None}
    waiting = sorted(conditions, key=lambda c: (len(c.names), len(c.text)))  # bounds of one size come first
    kept: list[Condition] = []
    edges: list[Sizes] = []
    for condition in waiting:
        kept += _model_says(program, condition, kept, functions, edges)
    for condition in list(kept):  # once more, where all others hold
        others = [c for c in kept if c is not condition]
        kept = sorted([*others, *_model_says(program, condition, others, functions, edges)], key=lambda c: c.text)
    kept = _needed(kept)
    unique = [e for k, e in enumerate(edges) if e not in edges[:k] and all(c.holds(e) for c in kept)]
    return tuple(sorted(kept, key=lambda c: c.text)), tuple(unique)


def _model_says(
    program: Program,
    condition: Condition,
    others: Sequence[Condition],
    functions: Functions,
    edges: list[Sizes],
) -> list[Condition]:
    """What of a condition is the model's: all, nothing, or a smaller least size. `edges` gets the sizes of the rest."""
    everywhere = _failing(condition)
    failing = [point for point in everywhere if all(c.holds(point) for c in others)]
    looked = failing or everywhere
    if not looked and max(stated(condition), default=0) < _PLAIN.get(len(condition.names), 0):
        return []  # all of its numbers were passed, and it held
    if not looked or any(min(point.values()) > 1 and _plain(functions, point, others) for point in looked):
        return [condition]
    inner = sorted((p for p in failing if min(p.values()) > 1), key=lambda p: max(p.values()))
    default = default_sizes(program, others)
    at = partial(_around, default, others)  # plain sizes of 1 are proven anyway
    first = next((k for k, p in enumerate(inner) if _runs(program, at(p))), None) if _is_minimum(condition) else 0
    if first is None or not all(_runs(program, at(inner[k])) for k in (first, -1) if inner):
        return [condition]
    edges += map(at, inner[first : first + 1])
    return [Condition(f"{next(iter(inner[0]))} >= {min(inner[first].values())}")] if first else []


def _around(default: Sizes, others: Sequence[Condition], point: Sizes) -> Sizes:
    """Sizes of all dimensions at a point, those that other conditions tie to it chosen so that these hold."""
    sizes = {**default, **point}
    if all(c.holds(sizes) for c in others):
        return sizes
    fixed = (Condition(f"{name} {sign} {size}") for name, size in point.items() for sign in ("<=", ">="))
    return nearest([*others, *fixed], sizes) or sizes


def _is_minimum(condition: Condition) -> bool:
    """Whether it is a least size of one dimension; torch may ask for more than the model does."""
    return len(condition.names) == 1 and condition.text.startswith(f"{next(iter(condition.names))} >= ")


def _needed(conditions: Sequence[Condition]) -> list[Condition]:
    """Without those that follow from the others where no size is 0 or 1: with a past of 2 tokens at least,
    `past + sequence <= 16` makes torch say `sequence <= 14`, which is not so for a past of none."""
    kept = list(conditions)
    bounding = [c for c in conditions if " <= " in c.text or " >= " in c.text]
    for condition in sorted(bounding, key=lambda c: (len(c.names), c.text)):
        others = [c for c in kept if c is not condition and c in bounding]
        names = sorted(condition.names.union(*(c.names for c in others if c.names & condition.names)))
        if len(names) > 3 or not any(c.names & condition.names for c in others):
            continue
        numbers = {n for c in kept for n in stated(c)}
        beyond = {n + d for n in stated(condition) for d in range(12)}
        places = [sorted(n for n in {2, 3, 4, 5, 8, 31, 4096, *numbers, *(beyond if name in condition.names else ())}
                         if n > 1)[:60] for name in names]  # fmt: skip
        points = (dict(zip(names, point, strict=True)) for point in product(*places))
        if not any(not condition.holds(p) and all(c.holds(p) for c in others) for p in points):
            kept.remove(condition)
    return kept


def default_sizes(program: Program, conditions: Sequence[Condition] = ()) -> Sizes:
    """Sizes of the dynamic dimensions to trace a program at: 2 or more, unlike each other, and such that it holds."""
    sizes = dict(zip(dynamic_dimensions(program.inputs), TRACE_SIZES, strict=False))
    return nearest(tuple(conditions) or program.conditions, sizes) or sizes


def sizes_to_trace(program: Program) -> Sizes:
    """The default sizes, or larger ones at which no size in the graph is 0 or 1: torch would take it for fixed. A
    detector's features are a 32nd of its image."""
    nodes = [n for n in program.graph.nodes if n.op == "placeholder"]
    inner = sizes_in(program.graph)
    for growth in (1, 3, 9, 27, 81):
        wanted = {name: size * growth for name, size in default_sizes(program).items()}
        sizes = nearest(program.conditions, wanted) or wanted
        known = {
            size.node.expr: sympy.Integer(number)
            for node, spec in zip(nodes, program.inputs, strict=True)
            for size, number in zip(node.meta["val"].shape, spec.resolve(sizes), strict=True)
            if isinstance(size, torch.SymInt)
        }
        found = [size.xreplace(known) for size in inner]
        if all(size.free_symbols or size > 1 for size in found):
            return sizes
    return default_sizes(program)


def _failing(condition: Condition) -> list[Sizes]:
    names = sorted(condition.names)
    points = product(_LOOKED_AT.get(len(names), _FEW), repeat=min(len(names), 6))
    named = (dict(zip(names, point, strict=False)) for point in points)
    return [point for point in named if not condition.holds(point)]


def _plain(functions: Functions, point: Sizes, others: Sequence[Condition]) -> bool:
    """Whether no size in the graph has to be 0 or 1 at a point: where a size is made of two dimensions, as
    `text - past` is, one of them may leave it no other."""
    if _least(functions, point) <= 1:
        return False
    tied = sorted({name for names in functions.values() if names & set(point) for name in names} - set(point))
    if len(tied) != 1:
        return True
    tries = {2, 3, 4, 5, 8, *(size - less for size in point.values() for less in range(4) if size - less > 1)}
    whole = [{**point, tied[0]: size} for size in tries]
    return any(_least(functions, at) > 1 for at in whole if all(c.holds(at) for c in others))


def _least(functions: Iterable[Function], point: Mapping[str, int]) -> float:
    """The least size in the graph where its inputs have these sizes, of those that these sizes determine."""
    found = [2.0]
    for function in functions:
        try:
            found.append(function(point))
        except (KeyError, ArithmeticError, ValueError):
            continue
    return min(found)


def _text(size: sympy.Expr) -> str | None:
    try:
        return say(size)
    except ValueError:
        return None


def _runs(program: Program, sizes: Mapping[str, int]) -> bool:
    """Whether the graph runs on inputs of these sizes, without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    class Shapes(fx.Interpreter):
        def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
            return mode.from_tensor(super().get_attr(target, args, kwargs), static_shapes=True)

    known = {identifier(name): size for name, size in sizes.items()}
    named = {name: known[identifier(name)] for name in dynamic_dimensions(program.inputs)}
    try:
        with mode, torch.no_grad():
            inputs = [torch.empty(i.resolve(named), dtype=i.dtype, device=META) for i in program.inputs]
            Shapes(program.graph_module).run(*inputs, enable_io_processing=False)
    except Exception:  # whatever the operators raise where a size does not fit
        return False
    return True


def sizes_in(graph: fx.Graph) -> set[sympy.Expr]:
    """Every symbolic size of a tensor in a graph."""
    values = [node.meta.get("val") for node in graph.nodes]
    found = (s for v in values if isinstance(v, Tensor) for s in v.shape if isinstance(s, torch.SymInt))
    return {size.node.expr for size in found}  # type: ignore[attr-defined]  # a SymInt, which mypy takes for an int
