"""The values that options of passes hold: of the type that the field declares, plain, and written as Python writes
them."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union


def fits(value: Any, cls: type, name: str) -> bool:
    """Whether `value` is what the field `name` of a dataclass takes. A whole number is a float too, True is no number;
    a type that is not plain data, or cannot be resolved, takes everything."""
    try:
        declared = typing.get_type_hints(cls)[name]
    except (NameError, AttributeError, TypeError):  # a name that its module imports for type checkers only
        return True
    return _fits(value, declared)


def expected(cls: type, name: str) -> str:
    """The type of a field as its file writes it."""
    declared = next(f.type for f in dataclasses.fields(cls) if f.name == name)
    return declared if isinstance(declared, str) else getattr(declared, "__name__", str(declared))


def freeze(value: Any) -> Any:
    """Lists as tuples, in dicts too: what a pass holds does not change, and TOML's arrays equal Python's tuples."""
    if isinstance(value, tuple | list):
        return tuple(freeze(v) for v in value)
    return {k: freeze(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def write_value(value: Any) -> str:
    """A value as Python writes it. Infinity, for which Python has no literal, is a number that overflows to it. What is
    `unwritable` does not read back."""
    if isinstance(value, tuple | list):
        items = [write_value(v) for v in value]
        return f"({', '.join(items)}{',' * (len(items) == 1)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{write_value(k)}: {write_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return repr(str(value))
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return repr(int(value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = float(value)
        return repr(number) if not math.isinf(number) else ("1e999" if number > 0 else "-1e999")
    return repr(value)


def unwritable(value: Any) -> str:
    """Why what `write_value` gives for a value does not read back as it; empty where it does."""
    if isinstance(value, tuple | list):
        return next(filter(None, map(unwritable, value)), "")
    if isinstance(value, Mapping):
        return unwritable([*value.keys(), *value.values()])
    if value is None or isinstance(value, str | numbers.Integral):
        return ""
    if isinstance(value, numbers.Real):
        return "NaN equals nothing" if math.isnan(value) else ""
    return f"{value!r} is a {type(value).__name__}"


def _fits(value: Any, declared: Any) -> bool:
    origin, inner = typing.get_origin(declared), typing.get_args(declared)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if declared in (int, float, bool, str, types.NoneType):
        return _is_a(value, declared)
    kind = origin or declared
    if kind in (tuple, list, Sequence):
        items = enumerate(value) if isinstance(value, tuple | list) else [(0, None)]
        return isinstance(value, tuple | list) and all(_fits(v, _item_type(kind, inner, k)) for k, v in items)
    if kind in (dict, Mapping):
        key, item = inner or (Any, Any)
        return isinstance(value, Mapping) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    return True


def _is_a(value: Any, declared: type) -> bool:
    if isinstance(value, bool) or declared is bool:
        return isinstance(value, bool) and declared is bool
    return isinstance(value, int | float if declared is float else declared)


def _item_type(kind: Any, inner: tuple[Any, ...], place: int) -> Any:
    if not inner:
        return Any
    fixed = kind is tuple and Ellipsis not in inner  # tuple[int, str]
    return inner[min(place, len(inner) - 1)] if fixed else inner[0]
