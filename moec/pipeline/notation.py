"""The notation of a pipeline: `upcycle(experts=8, top_k=2), fuse-moe`."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

from moec import registry
from moec.errors import MoecError
from moec.pipeline.passes import Pass


def make_pass(name: str, config: dict[str, Any]) -> Pass:
    """A pass from its name and fields. Raises M202 for an unknown name, M201 for an unknown field or a word where none
    belongs."""
    cls: type[Pass] = registry.find("passes", name)
    known = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    for key, value in config.items():
        if key not in known:
            raise MoecError(
                "M201", f"{name} has no option {key!r}", f"{name}(…)", registry.did_you_mean(key, list(known))
            )
        if isinstance(value, _Word) and not known[key].startswith("str"):
            raise MoecError("M201", f"{key}={value} is not a value", f"{name}(…)", f"{key} is {known[key]}")
    return cls(**{k: str(v) if isinstance(v, _Word) else v for k, v in config.items()})


class _Word(str):
    """Text that was written without quotes."""


def parse_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """`"a(x=1, y=z), b-c"` -> [("a", {"x": 1, "y": "z"}), ("b-c", {})]: Python's own grammar, with dashes in names and
    words as text."""
    bad = MoecError(
        "M201", f"cannot read the pipeline {text!r}", "the pipeline", 'write "pass(option=value, …), other-pass"'
    )
    try:
        tree = ast.parse(f"[{_underscore_names(text)}]", mode="eval").body
    except SyntaxError:
        raise bad from None
    calls = []
    for item in tree.elts if isinstance(tree, ast.List) else []:
        call = item if isinstance(item, ast.Call) else ast.Call(item, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise bad
        try:
            config = {
                k.arg or "": _Word(k.value.id) if isinstance(k.value, ast.Name) else ast.literal_eval(k.value)
                for k in call.keywords
            }
        except ValueError:
            raise bad from None
        calls.append((call.func.id.replace("_", "-"), config))
    return calls


def _underscore_names(text: str) -> str:
    """Dashes to underscores outside parentheses, where only pass names stand."""
    depth, out = 0, []
    for c in text:
        depth += (c == "(") - (c == ")")
        out.append("_" if c == "-" and depth == 0 else c)
    return "".join(out)
