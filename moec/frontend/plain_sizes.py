"""Symbolic sizes as plain data, and back: what JSON holds, with no text that would have to be evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import sympy
import torch

Plain = Any  # None, bool, int, float, str, and lists and dicts of these
_OF_SYMPY = ("Add", "Mul", "Pow", "Equality", "Unequality", "LessThan", "StrictLessThan", "GreaterThan",
             "StrictGreaterThan", "And", "Or", "Not")  # fmt: skip
_OF_TORCH = ("FloorDiv", "CleanDiv", "CeilDiv", "ModularIndexing", "Mod", "PythonMod", "Max", "Min", "CeilToInt",
             "FloorToInt", "IntTrueDiv", "FloatTrueDiv", "TruncToInt", "RoundToInt", "ToFloat",
             "PowByNatural")  # fmt: skip
_KINDS = {torch.SymInt: "int", torch.SymFloat: "float", torch.SymBool: "bool"}


class NotPlainError(Exception):
    """Something has no form as plain data."""


class Sizes:
    """The symbols of one graph: written down once, with their ranges and the sizes that they had at the capture."""

    def __init__(self) -> None:
        self._symbols: dict[str, list[Plain]] = {}

    def plain(self, value: Any) -> Plain:
        """A symbolic number as plain data. Raises NotPlainError for one that depends on data, or has a function that
        is not known here."""
        return [_KINDS[type(value)], self._expression(value.node.expr, value.node.shape_env)]

    def symbols(self) -> dict[str, list[Plain]]:
        """Of each symbol: its assumptions, least, largest and own size; None for an infinite largest one."""
        return dict(self._symbols)

    def _expression(self, expression: Any, environment: Any) -> Plain:
        if expression.is_Symbol:
            name = str(expression)
            if name not in self._symbols:
                self._symbols[name] = _symbol(expression, environment)
            return name
        if expression.is_Integer:
            return int(expression)
        if expression in (sympy.true, sympy.false):
            return bool(expression)
        kind = type(expression).__name__
        if _functions().get(kind) is not type(expression):
            raise NotPlainError(f"a size that is computed by {kind}")
        return [kind, *(self._expression(part, environment) for part in expression.args)]


def _symbol(symbol: Any, environment: Any) -> list[Plain]:
    sizes, bounds = environment.backed_var_to_val, environment.var_to_range.get(symbol)
    if symbol not in sizes or bounds is None or not bounds.lower.is_Integer:
        raise NotPlainError(f"the size {symbol}, which depends on data")
    largest = int(bounds.upper) if bounds.upper.is_Integer else None
    return [symbol.is_positive, symbol.is_nonnegative, int(bounds.lower), largest, int(sizes[symbol])]


class SizesOf:
    """Symbolic numbers from plain data, in a shape environment of their own."""

    def __init__(self, symbols: Mapping[str, list[Plain]]) -> None:
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        self.environment = ShapeEnv()
        self._symbols = {name: self._restored(name, *facts) for name, facts in symbols.items()}
        self._made: dict[Any, Any] = {}

    def _restored(
        self, name: str, positive: bool | None, nonnegative: bool | None, least: int, largest: int | None, size: int
    ) -> Any:
        from torch.utils._sympy.numbers import int_oo

        assumed = {"positive": positive} if positive is not None else {"nonnegative": nonnegative}
        symbol = sympy.Symbol(name, integer=True, **{k: v for k, v in assumed.items() if v is not None})
        self.environment.add_backed_var_to_val(symbol, size)
        self.environment.constrain_symbol_range(
            symbol, compiler_min=least, compiler_max=int_oo if largest is None else largest
        )
        return symbol

    def value(self, plain: Plain) -> Any:
        """The number; equal ones are one object."""
        kind, expression = plain
        found = self._expression(expression)
        if (kind, found) not in self._made:
            make = getattr(self.environment, f"create_sym{kind}node")
            self._made[kind, found] = make(found) if kind == "bool" else make(found, hint=None)
        return self._made[kind, found]

    def _expression(self, plain: Plain) -> Any:
        if isinstance(plain, str):
            return self._symbols[plain]
        if isinstance(plain, list):
            return _functions()[plain[0]](*map(self._expression, plain[1:]))
        return sympy.sympify(plain)


@cache
def _functions() -> dict[str, Any]:
    import torch.utils._sympy.functions as theirs

    known = {name: getattr(sympy, name) for name in _OF_SYMPY}
    return known | {name: getattr(theirs, name) for name in _OF_TORCH}
