"""Expressions over sizes: what is read is computed as Python computes it, and nothing else is read."""

from __future__ import annotations

import random

import pytest

from moec.program.expression import FUNCTIONS, LONGEST, read
from tests.many import failing, none

SIZES = {"batch": 3, "sequence": 11, "past": 5}


def drawn(generator: random.Random, depth: int = 4) -> str:
    """A random expression over `SIZES`, with parentheses around every part."""
    if depth == 0 or generator.random() < 0.2:
        return generator.choice([*SIZES, str(generator.randint(0, 99)), f"{generator.random():.3f}"])
    a, b = drawn(generator, depth - 1), drawn(generator, depth - 1)
    sign = generator.choice(["+", "-", "*", "/", "//", "%", "max", "trunc", "float"])
    if sign == "max":
        return f"max({a}, {b})"
    return f"{sign}({a})" if sign in ("trunc", "float") else f"(({a}) {sign} ({b}))"


def read_as_python_would(seed: int) -> None:
    generator = random.Random(seed)
    text = f"{drawn(generator)} {generator.choice(['<', '<=', '==', '!=', '>', '>='])} {drawn(generator)}"
    written, names, function = read(text)
    assert read(written)[0] == written and names <= set(SIZES)
    try:
        want = eval(text, {**FUNCTIONS}, dict(SIZES))  # the oracle: the text is this test's own
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            function(SIZES)
    else:
        assert function(SIZES) == want == read(written)[2](SIZES)


def test_read_as_python_would_and_written_as_read() -> None:
    none(failing(read_as_python_would, range(200)))


@pytest.mark.parametrize(("text", "want"), [
    ("not batch == 3", False), ("batch == 3 and sequence < 11", False), ("batch == 4 or past == 5", True),
    ("1 <= batch <= 3", True), ("-batch + 3 == 0", True), ("abs(batch - sequence) == 8", True),
])  # fmt: skip
def test_logic(text: str, want: bool) -> None:
    assert read(text)[2](SIZES) is want


@pytest.mark.parametrize("text", [
    "__import__('os').system('touch /tmp/moec-was-here') == 0", "open('/etc/passwd') == 1", "batch.__class__ == 1",
    "(lambda: 1)() == 1", "[b for b in batch] == 1", "batch[0] == 1", "'a' * 10 == 'b'", "9 ** 9 ** 9 == 1",
    "1 if batch else 2", "f'{batch}' == 1", "(b := 1) == 1", "max(*batch) == 1", "max() == 1", "float(x=1) == 1",
    "1 << 99999 == 1", "batch is None", "batch in past", "None == 1", "trunc(1, 2) == 1", "", "batch ==", "1j == 1",
    "(" * 300 + "1" + ")" * 300, "+" * 1500 + "1 == 1", "-" * 1900 + "1 == 1", "1 " * LONGEST,
    "getattr(batch, 'x') == 1", "~batch == 1", "b'1' == 1", "... == 1", "{} == 1", "yield", "import os",
])  # fmt: skip
def test_nothing_else_is_read(text: str) -> None:
    with pytest.raises(ValueError):
        read(text)


@pytest.mark.parametrize("value", [None, 3, ["batch < 1"], {"a": 1}, b"batch < 1"])
def test_only_text_is_read(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        read(value)  # type: ignore[arg-type]
