"""The notation of a pipeline: `upcycle(experts=8, top_k=2), fuse-moe`. What is written reads back as the same."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from moec import registry
from moec.errors import MoecError
from moec.pipeline.option_values import expected, fits, unwritable, write_value
from moec.pipeline.passes import Pass

# a string, or a character that opens, closes or joins
_PIECES = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[()\[\]{}-]""", re.DOTALL)
# a string, or a path that stands in a list without quotes
_PATHS = re.compile(
    r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?<=[\[,\s])[\w.~+@-]*/[\w./~+@-]*(?=\s*[,\]])""", re.DOTALL
)
_FIX = 'write "pass(option=value, …), other-pass"'


def make_pass(name: str, config: Mapping[str, Any]) -> Pass:
    """A pass from its name and fields. Raises M202 for an unknown name, M201 for an unknown field or a word where none
    belongs."""
    cls: type[Pass] = registry.find("passes", name)
    known = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in config.items():
        first = next(iter(known), key)
        if key == ALONE and first in config:
            raise MoecError("M201", f"{name} has {first} twice", f"{name}(…)", f"give {first} once")
        key = first if key == ALONE else key
        if key not in known:
            raise MoecError(
                "M201", f"{name} has no option {key!r}", f"{name}(…)", registry.did_you_mean(key, list(known))
            )
        if isinstance(value, _Word) and not str(known[key].type).startswith("str"):
            raise MoecError("M201", f"{key}={value} is not a value", f"{name}(…)", f"{key} is {known[key].type}")
        values[key] = str(value) if isinstance(value, _Word) else value
    return cls(**values)


def check_options(item: Pass) -> None:
    """Raise M201 for an option of another type than its field declares, or one that a manifest could not say."""
    for key, value in item.given.items():
        reason = unwritable(value)
        if reason:
            fix = "give numbers, texts, tuples and dicts"
            raise MoecError("M201", f"{key} cannot be written down: {reason}", f"{item.name}(…)", fix)
        if not fits(value, type(item), key):
            fix = f"{key} is {expected(type(item), key)}"
            raise MoecError("M201", f"{key}={write_value(value)} is not a value", f"{item.name}(…)", fix)


ALONE = ""  # the name of a value that was written without one: it is the first option's


class _Word(str):
    """Text that was written without quotes."""


_SWITCHES = {"true": True, "false": False}  # as TOML writes them


def read_value(text: str) -> Any:
    """One value as the notation writes it: a number, a word, a list, a table. What is none of these is the text itself,
    such as a path."""
    try:
        ((_, config),) = parse_calls(f"any({text})")
        return config[ALONE]
    except (MoecError, ValueError, KeyError):
        return _Word(text)


def parse_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """`"a(x=1, y=z), b-c"` -> [("a", {"x": 1, "y": "z"}), ("b-c", {})]: Python's own grammar, with dashes in names and
    words as text. Raises M201 for anything else."""
    bad = MoecError("M201", f"cannot read the pipeline {text!r}", "the pipeline", _FIX)
    try:
        tree = ast.parse(f"[{_underscore_names(_quoted_paths(text))}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: brackets nested without end
        raise bad from None
    if not isinstance(tree, ast.List):  # the text has brackets that close ours
        raise bad
    return [_read_call(item, bad) for item in tree.elts]


def _read_call(item: ast.expr, bad: MoecError) -> tuple[str, dict[str, Any]]:
    call = item if isinstance(item, ast.Call) else ast.Call(item, [], [])
    names = [k.arg for k in call.keywords]
    named = None not in names and len(names) == len(set(names))
    if not isinstance(call.func, ast.Name) or not named or len(call.args) > 1:  # one may stand alone: set-top-k(4)
        raise bad
    given = [(ALONE, value) for value in call.args] + [(str(k.arg), k.value) for k in call.keywords]
    given = [(name, _switch(value)) for name, value in given]
    try:
        words = {name: _word(value) for name, value in given}
        config = {name: ast.literal_eval(_plain(v)) if words[name] is None else words[name] for name, v in given}
    except (ValueError, TypeError):  # a name inside, or a key that cannot be one
        raise bad from None
    return call.func.id.replace("_", "-"), config


def _word(value: ast.expr) -> _Word | None:
    """Text without quotes, `mean-row` too, which Python reads as a difference; None for any other value."""
    if isinstance(value, ast.Name):
        return _Word(value.id)
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Sub):
        left, right = _word(value.left), _word(value.right)
        return None if left is None or right is None else _Word(f"{left}-{right}")
    return None


def _switch(value: ast.expr) -> ast.expr:
    """`true` and `false` as the values that they are; anything else as it is."""
    is_one = isinstance(value, ast.Name) and value.id in _SWITCHES
    return ast.Constant(_SWITCHES[value.id]) if is_one else value  # type: ignore[attr-defined]


def _plain(value: ast.expr) -> ast.expr:
    """A list with its words as texts; anything else as it is."""
    if isinstance(value, ast.List):
        value.elts = [ast.Constant(e.id) if isinstance(e, ast.Name) else e for e in value.elts]
    return value


def _quoted_paths(text: str) -> str:
    """Paths in lists, `[code/, law/]`, in quotes."""

    def quoted(match: re.Match[str]) -> str:
        piece = match.group()
        return piece if piece[0] in "'\"" else repr(piece)

    return _PATHS.sub(quoted, text)


def _underscore_names(text: str) -> str:
    """Dashes to underscores outside brackets and quotes, where only pass names stand."""
    depth = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal depth
        piece = match.group()
        depth += (piece in tuple("([{")) - (piece in tuple(")]}"))
        return "_" if piece == "-" and depth == 0 else piece

    return _PIECES.sub(replaced, text)
