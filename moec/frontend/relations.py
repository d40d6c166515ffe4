"""torch.export's symbolic expressions as the text that `moec.program.expression` reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
from torch.utils._sympy import functions as F


class Unsayable(ValueError):
    """An expression that has no text of this form."""


def say(expression: Any) -> str:
    """A sympy expression of torch's as text.

    Raises:
        Unsayable: for a function that the form does not have.
    """
    return _relation(expression) if isinstance(expression, sympy.core.relational.Relational) else _say(expression)


def _relation(relation: Any) -> str:
    """Numbers stand on the right; of whole numbers, `<` and `>` become the bound that still holds."""
    left, right, sign = relation.lhs, relation.rhs, _SIGNS[type(relation)]
    if left.is_Integer and not right.is_Integer:
        left, right, sign = right, left, _MIRRORED.get(sign, sign)
    constant, rest = left.as_coeff_Add() if isinstance(left, sympy.Expr) else (sympy.Integer(0), left)
    if constant.is_Integer and right.is_Integer:
        left, right = rest, right - constant
    if left.is_integer and right.is_Integer and sign in ("<", ">"):
        right, sign = (right - 1, "<=") if sign == "<" else (right + 1, ">=")
    return f"{_say(left)} {sign} {_say(right)}"


def _say(value: Any) -> str:
    if isinstance(value, sympy.core.relational.Relational):
        return f"({_relation(value)})"
    if value.is_Symbol:
        return str(value)
    if value.is_Integer:
        return str(int(value))
    if value.is_Float:
        return repr(float(value))
    form = next((form for kind, form in _FORMS if isinstance(value, kind)), None)
    if form is None:
        raise Unsayable(f"{type(value).__name__} has no text")
    return form([*value.args])


def _product(args: list[Any]) -> str:
    return _between("*")([a for a in args if not (a.is_Float and float(a) == 1.0)] or args[:1])


def _between(sign: str) -> Callable[[list[Any]], str]:
    return lambda args: "(" + f" {sign} ".join(map(_say, args)) + ")"


def _called(name: str) -> Callable[[list[Any]], str]:
    return lambda args: f"{name}({', '.join(map(_say, args))})"


def _power(args: list[Any]) -> str:
    base, exponent = args
    if not exponent.is_Integer or not 1 <= int(exponent) <= 16:
        raise Unsayable("a power that is no whole number")
    return "(" + " * ".join([_say(base)] * int(exponent)) + ")"


def _indexed(args: list[Any]) -> str:
    base, divisor, modulus = map(_say, args)
    return f"({base} // {divisor} % {modulus})"


def _function(name: str) -> Any:
    """A function of torch's that some version may lack."""
    return getattr(F, name, ())


_SIGNS = {sympy.Eq: "==", sympy.Ne: "!=", sympy.Lt: "<", sympy.Le: "<=", sympy.Gt: ">", sympy.Ge: ">="}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_FORMS: list[tuple[Any, Callable[[list[Any]], str]]] = [
    (sympy.Add, _between("+")),
    (sympy.Mul, _product),
    (sympy.Pow, _power),
    (_function("PowByNatural"), _power),
    (_function("FloorDiv"), _between("//")),
    (_function("CleanDiv"), _between("//")),
    (_function("Mod"), _between("%")),
    (_function("PythonMod"), _between("%")),
    (sympy.Mod, _between("%")),
    (_function("ModularIndexing"), _indexed),
    (_function("FloatTrueDiv"), _between("/")),
    (_function("IntTrueDiv"), _between("/")),
    (_function("ToFloat"), _called("float")),
    (_function("TruncToInt"), _called("trunc")),
    (_function("TruncToFloat"), lambda args: f"float(trunc({_say(args[0])}))"),
    (_function("FloorToInt"), _called("floor")),
    (_function("CeilToInt"), _called("ceil")),
    (_function("RoundToInt"), _called("round")),
    (_function("OpaqueUnaryFn_sqrt"), _called("sqrt")),
    (sympy.floor, _called("floor")),
    (sympy.ceiling, _called("ceil")),
    (sympy.Abs, _called("abs")),
    ((_function("Max"), sympy.Max), _called("max")),
    ((_function("Min"), sympy.Min), _called("min")),
    (sympy.And, _between("and")),
    (sympy.Or, _between("or")),
    (sympy.Not, lambda args: f"(not {_say(args[0])})"),
    (_function("Identity"), lambda args: _say(args[0])),
]
