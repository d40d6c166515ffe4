"""The conditions on sizes that `torch.export` states of what it captured, by the names of the dynamic dimensions.

They stand in four places: the range of each symbol, the guards and the deferred assertions of the shape environment
(some of which never reach the graph), and the assertions in the graph, which are all that a file keeps. Symbols of
equal size and other names are a condition too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._sympy.functions import FloorDiv, Max, Min

from moec.frontend.data_assertions import always, refuse_on_tensors, refused
from moec.frontend.edges import settle, sizes_in
from moec.frontend.looked_up import positions_in_tables
from moec.frontend.relations import say
from moec.program.conditions import Condition
from moec.program.program import Program
from moec.program.signature import Input, identifier, is_computed, names_in, per

_UNBOUNDED = 2**62  # torch writes the largest int64, or an infinity of its own, where nothing bounds a size
_ASSERTIONS = (torch.ops.aten._assert_scalar.default,)


def assume(program: Program, exported: ExportedProgram) -> None:
    """Give a program the conditions under which it is what was exported, each once, in the order of their text.

    Left out is what holds for all sizes, and what is torch's own assumption, see `moec.frontend.edges`.

    Raises:
        MoecError: M207 for a condition on data, which no engine could check.
    """
    inputs = program.inputs
    names = _names(exported, inputs)
    known = {*names, *(s for _, dim in _sizes(exported, inputs) for s in _dimension(dim).free_symbols)}
    found: set[Condition] = set()
    for expression in (
        *_stated(exported),
        *positions_in_tables(program.graph),
        *_ranges(exported, names),
        *_equal(exported, inputs, names),
    ):
        condition = _condition(expression, names, known, exported)
        if condition is not None:
            found.add(condition)
    refuse_on_tensors(exported)
    sizes = [size.xreplace(names) for size in sizes_in(exported.graph)]
    program.conditions, program.edges = settle(program, sorted(found, key=lambda c: c.text), sizes)


def _names(exported: ExportedProgram, inputs: Sequence[Input]) -> dict[sympy.Symbol, sympy.Expr]:
    """For each symbol the dimension that it is the size of; of several, one that is no sum. A symbol that only occurs
    in a computed size, such as `2*s7`, by that size."""
    found: dict[sympy.Symbol, sympy.Expr] = {}
    for size, dim in _sizes(exported, inputs):
        if isinstance(size, sympy.Symbol) and (size not in found or not is_computed(dim)):
            found[size] = _dimension(dim)
    for size, dim in _sizes(exported, inputs):
        for symbol in size.free_symbols - set(found):
            factor, rest = size.coeff(symbol, 1), size.coeff(symbol, 0)
            if factor.is_Integer and rest.is_Integer and size == factor * symbol + rest:
                found[symbol] = FloorDiv(_dimension(dim) - rest, factor)
    return found


def _sizes(exported: ExportedProgram, inputs: Sequence[Input]) -> Iterator[tuple[sympy.Expr, str]]:
    """Each dynamic dimension of the inputs: the expression that torch has for it, and its name."""
    placeholders = [n for n in exported.graph.nodes if n.op == "placeholder"]
    user = set(exported.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in placeholders if n.name in user]
    for value, spec in zip(values, inputs, strict=False):
        for size, dim in zip(getattr(value, "shape", ()), spec.shape, strict=False):
            if isinstance(dim, str) and isinstance(size, torch.SymInt):
                yield size.node.expr, dim


def _dimension(name: str) -> sympy.Expr:
    """A dimension's size; of a sum, that of its parts."""
    parts = [sympy.Symbol(identifier(part), integer=True, nonnegative=True) for part in names_in(name)]
    return FloorDiv(sympy.Add(*parts), per(name)) if per(name) > 1 else sympy.Add(*parts)


# ---------------------------------------------------------------------- what torch states
def _stated(exported: ExportedProgram) -> Iterator[Any]:
    """Guards, deferred assertions, and the assertions in the graph."""
    environment = shape_environment(exported)
    if environment is not None:
        yield from (guard.expr for guard in environment.guards)
        for asserts in environment.deferred_runtime_asserts.values():
            yield from (one.expr for one in asserts)
    for node in exported.graph.nodes:
        if node.target in _ASSERTIONS:
            yield _asserted(node.args[0])


def shape_environment(exported: ExportedProgram) -> Any:
    """Where torch.export keeps what it found out about sizes; None where all are fixed."""
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, Tensor) else (value,):
            if isinstance(size, torch.SymInt):
                return size.node.shape_env
    return None


def _asserted(value: Any) -> Any:
    """The expression of an asserted value; made anew from its operands: torch replaces it by what it hopes for."""
    meta = value.meta.get("val") if isinstance(value, fx.Node) else value
    relation = _RELATIONS.get(getattr(value.target, "__name__", "")) if isinstance(value, fx.Node) else None
    if relation is not None:
        return relation(*(_expression(argument) for argument in value.args))
    return _expression(meta)


def _expression(value: Any) -> Any:
    value = value.meta.get("val") if isinstance(value, fx.Node) else value
    node = getattr(value, "node", None)
    return value if node is None else node.expr


_RELATIONS: dict[str, Any] = {
    "eq": sympy.Eq, "ne": sympy.Ne, "lt": sympy.Lt, "le": sympy.Le, "gt": sympy.Gt, "ge": sympy.Ge,
}  # fmt: skip


def _ranges(exported: ExportedProgram, names: dict[sympy.Symbol, sympy.Expr]) -> Iterator[Any]:
    for symbol, found in exported.range_constraints.items():
        if symbol not in names:
            continue
        low, high, parts = found.lower, found.upper, len(sympy.Add.make_args(names[symbol]))
        if low > 2 * parts:  # torch assumes 2 of each part
            yield sympy.Ge(symbol, low)
        if high < _UNBOUNDED:
            yield sympy.Le(symbol, high)


def _equal(exported: ExportedProgram, inputs: Sequence[Input], names: dict[sympy.Symbol, sympy.Expr]) -> Iterator[Any]:
    """Dimensions of other names that torch found to be one size, or a function of others."""
    for size, dim in _sizes(exported, inputs):
        if size.free_symbols <= set(names):
            yield sympy.Eq(_dimension(dim), size.xreplace(names))


# ---------------------------------------------------------------------- what of it is a condition
def _condition(
    expression: Any, names: dict[sympy.Symbol, sympy.Expr], known: set[Any], exported: ExportedProgram
) -> Condition | None:
    """The condition by the dimensions' names; None where it holds always, M207 where it cannot be said."""
    environment = shape_environment(exported)
    stated = sympy.sympify(expression if environment is None else environment.replace(sympy.sympify(expression)))
    if stated == sympy.true or (stated.free_symbols - known and always(exported, stated, known)):
        return None
    said = stated.xreplace(names)
    if _of_any_size(said) == sympy.true:
        return None
    if said == sympy.false or stated.free_symbols - known:
        raise refused(str(expression))
    try:
        return Condition(say(said))
    except ValueError as error:
        raise refused(str(expression)) from error


def _of_any_size(relation: Any) -> Any:
    """A relation as far as sizes that are 0 or more decide it: torch leaves the smaller of 8 and 16 times a size as it
    is, since it does not know that no size is below 0."""
    if not relation.has(Min, Max):
        return relation
    sizes = {s: sympy.Symbol(s.name, integer=True, nonnegative=True) for s in relation.free_symbols}
    return relation.xreplace(sizes).replace(Min, sympy.Min).replace(Max, sympy.Max)
