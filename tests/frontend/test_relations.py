"""torch's symbolic expressions become texts that compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
from torch.utils._sympy import functions as F

from moec.frontend.relations import say
from moec.program.conditions import Condition
from moec.program.expression import read

a, b = sympy.Symbol("a", integer=True, positive=True), sympy.Symbol("b", integer=True, positive=True)


@pytest.mark.parametrize(("expression", "text"), [
    (a <= 72, "a <= 72"),
    (sympy.Le(7, a), "a >= 7"),
    (a < 73, "a <= 72"),
    (sympy.Gt(a, 6), "a >= 7"),
    (sympy.Eq(F.Mod(a, 4), 0), "a % 4 == 0"),
    (sympy.Ne(a, b), "a != b"),
    (sympy.Le(a + b + 2, 24), "a + b <= 22"),
    (sympy.Eq(a, 3) | sympy.Eq(b, 1), "a == 3 or b == 1"),
])  # fmt: skip
def test_the_form(expression: Any, text: str) -> None:
    assert Condition(say(expression)).text == Condition(text).text


EXPRESSIONS = [
    a + 2 * b - 3, F.FloorDiv(a - 3, 4), F.Mod(a * b, 7), F.PythonMod(a, b), F.Max(a, b, 5), F.Min(a, 2 * b), a**3,
    F.TruncToInt(F.FloatTrueDiv(1.5 * F.ToFloat(a * b), 4.0)), F.CeilToInt(F.IntTrueDiv(a, b)), F.CleanDiv(6 * a, 3),
    F.FloorToInt(F.FloatTrueDiv(F.ToFloat(a), 3.0)), F.ModularIndexing(a, 2, 3), sympy.Abs(a - b),
    F.OpaqueUnaryFn_sqrt(F.ToFloat(a)), F.Identity(a), F.RoundToInt(F.FloatTrueDiv(F.ToFloat(a), 2.0)),
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=str)
def test_the_same_number(expression: Any) -> None:
    function = read(say(expression))[2]
    for sizes in ((1, 1), (2, 5), (7, 3), (100, 11)):
        want = expression.subs(dict(zip((a, b), sizes, strict=True)))
        assert function(dict(zip(("a", "b"), sizes, strict=True))) == pytest.approx(float(want))


@pytest.mark.parametrize("expression", [sympy.sin(a), a ** sympy.Rational(1, 2), a**b, F.OpaqueUnaryFn_cos(a)])
def test_what_has_no_text(expression: Any) -> None:
    with pytest.raises(ValueError):
        say(expression)
