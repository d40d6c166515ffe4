"""Values are of the type that a field declares, and are written as Python writes them."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from moec.pipeline.option_values import expected, fits, freeze, write_value


@dataclass
class Holder:
    whole: int
    real: float
    flag: bool
    text: str
    maybe: int | None
    several: Sequence[int]
    pair: tuple[int, str]
    many: tuple[int, ...]
    table: Mapping[str, int | Mapping[str, Any]]
    choice: Literal["a", "b"]
    anything: Any
    array: np.ndarray


RIGHT: dict[str, list[Any]] = {
    "whole": [0, -3],
    "real": [0.5, 2],
    "flag": [True],
    "text": ["", "x"],
    "maybe": [None, 3],
    "several": [[], (1, 2)],
    "pair": [(1, "x")],
    "many": [(), (1, 2, 3)],
    "table": [{}, {"x": 8, "y": {"bits": None}}],
    "choice": ["a"],
    "anything": [None, object()],
    "array": [np.zeros(2)],  # no plain data: its own class decides
}
WRONG: dict[str, list[Any]] = {
    "whole": [True, 1.0, "1", None],
    "real": ["0.5", True, None],
    "flag": [1, "true", None],
    "text": [b"x", 3],
    "maybe": ["3", 1.5],
    "several": ["12", [1, "2"], 3, {1: 2}],
    "pair": [("x", 1)],
    "many": [(1, "2")],
    "table": [[], {1: 8}, {"x": 1.5}, {"x": {3: 4}}],
    "choice": ["c"],
}


@pytest.mark.parametrize("name", RIGHT)
def test_values_fit_their_field(name: str) -> None:
    assert [fits(value, Holder, name) for value in RIGHT[name]] == [True] * len(RIGHT[name])
    assert [fits(value, Holder, name) for value in WRONG.get(name, [])] == [False] * len(WRONG.get(name, []))


def test_a_type_is_named_as_its_file_writes_it() -> None:
    assert expected(Holder, "maybe") == "int | None"


@pytest.mark.parametrize(
    ("value", "text"),
    [((2,), "(2,)"), ([1, 2], "(1, 2)"), ({"x(": None}, "{'x(': None}"), (float("inf"), "1e999"), (True, "True")],
)
def test_values_as_text(value: Any, text: str) -> None:
    assert write_value(value) == text and ast.literal_eval(text) == freeze(value)


def test_lists_become_tuples_everywhere() -> None:
    assert freeze([1, {"a": [2, [3]]}]) == (1, {"a": (2, (3,))})
