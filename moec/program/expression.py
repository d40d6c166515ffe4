"""Expressions over sizes, as text: read without running anything, and turned into a function.

The form is a small part of Python's: names, whole and decimal numbers, `+ - * / // %`, comparisons, `and`, `or`,
`not`, and the functions of `FUNCTIONS`. Python's own parser reads it; what it finds is taken only where it stands in
the tables below, so that a manifest from anywhere cannot run code, and cannot ask for more than a few operations.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache, reduce
from typing import Any

Sizes = Mapping[str, int]
Function = Callable[[Sizes], Any]

LONGEST = 2000  # characters; torch's own are a few dozen
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": math.ceil,
    "float": float,
    "floor": math.floor,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
    "trunc": math.trunc,
}
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@lru_cache(maxsize=4096)
def read(text: str) -> tuple[str, frozenset[str], Function]:
    """The expression's one canonical text, the names in it, and the function of sizes that it is.

    Raises:
        ValueError: for anything that is not of the form above, with the part that is not.
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError(f"an expression is a text of at most {LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        function = _function(tree)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:80]!r} is no expression: {type(error).__name__}") from None
    called = {n.func for n in ast.walk(tree) if isinstance(n, ast.Call)}
    names = frozenset(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n not in called)
    return ast.unparse(tree), names, function


def _function(node: ast.AST) -> Function:
    found = _FORMS.get(type(node))
    if found is None:
        raise ValueError(f"{type(node).__name__} has no place in an expression over sizes")
    return found(node)


def _constant(node: Any) -> Function:
    value = node.value
    if type(value) not in (int, float, bool):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    return lambda _sizes: value


def _name(node: Any) -> Function:
    name = node.id
    return lambda sizes: sizes[name]


def _binary(node: Any) -> Function:
    apply, left, right = _of(_ARITHMETIC, node.op), _function(node.left), _function(node.right)
    return lambda sizes: apply(left(sizes), right(sizes))


def _unary(node: Any) -> Function:
    value = _function(node.operand)
    if isinstance(node.op, ast.Not):
        return lambda sizes: not value(sizes)
    if isinstance(node.op, ast.USub):
        return lambda sizes: -value(sizes)
    raise ValueError(f"{type(node.op).__name__} has no place in an expression over sizes")


def _compare(node: Any) -> Function:
    values = [_function(part) for part in (node.left, *node.comparators)]
    steps = [_of(_COMPARISONS, op) for op in node.ops]

    def holds(sizes: Sizes) -> bool:
        found = [value(sizes) for value in values]
        return all(step(a, b) for step, a, b in zip(steps, found, found[1:], strict=False))

    return holds


def _logic(node: Any) -> Function:
    parts, every = [_function(value) for value in node.values], isinstance(node.op, ast.And)
    return lambda sizes: (all if every else any)(bool(part(sizes)) for part in parts)


def _call(node: Any) -> Function:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in FUNCTIONS or node.keywords or not 1 <= len(node.args) <= 16:
        raise ValueError(f"{name or 'such a call'} has no place in an expression over sizes")
    apply, values = FUNCTIONS[name], [_function(argument) for argument in node.args]
    if name in ("max", "min"):
        return lambda sizes: reduce(apply, (value(sizes) for value in values))
    if len(values) != 1:
        raise ValueError(f"{name} takes one value")
    one = values[0]
    return lambda sizes: apply(one(sizes))


def _of(table: Mapping[type[ast.AST], Callable[[Any, Any], Any]], op: ast.AST) -> Callable[[Any, Any], Any]:
    if type(op) not in table:
        raise ValueError(f"{type(op).__name__} has no place in an expression over sizes")
    return table[type(op)]


_FORMS: dict[type[ast.AST], Callable[[Any], Function]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.Compare: _compare,
    ast.BoolOp: _logic,
    ast.Call: _call,
}
