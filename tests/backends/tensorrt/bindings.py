"""Which calls of TensorRT's Python bindings our sources make, and whether bindings take them: no library is needed for
either.

The sources name their objects as TensorRT does (`builder`, `network`, `config` …), which tells the class of each.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "constant": "IConstantLayer",
    "tensor": "ITensor",
    "moe": "IMoELayer",
    "shuffle": "IShuffleLayer",
    "plugin": "plugin",
    "trt": "",
}

MADE = {"add_moe": "IMoELayer", "add_shuffle": "IShuffleLayer"}  # what a call gives, whatever it is called


@dataclass(frozen=True)
class Use:
    """One use: `owner.name`, an enumeration's member where the owner is one; `arguments` of a call, keywords as
    `name=`; None of an attribute.

    Arguments from a sequence, of which only the run knows how many there are, are `**`.
    """

    owner: str
    name: str
    arguments: tuple[str, ...] | None
    written: bool
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.owner or 'trt'}.{self.name}{'' if self.arguments is None else self.arguments}"


def uses(source: str) -> list[Use]:
    """Every use in a source text, in order."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    scopes: dict[int, dict[str, str]] = {}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        scopes |= dict.fromkeys(map(id, ast.walk(function)), CLASSES | _assigned(function))
    return sorted(_uses(tree, calls, scopes), key=lambda use: use.line)


def _assigned(function: ast.FunctionDef) -> dict[str, str]:
    """Variables of a function that hold what a call of `MADE` gave."""
    found = {}
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Attribute)
        ):
            made = MADE.get(node.value.func.attr)
            found |= {target.id: made for target in node.targets if isinstance(target, ast.Name) and made}
    return found


def _uses(tree: ast.AST, calls: dict[int, ast.Call], scopes: dict[int, dict[str, str]]) -> Iterator[Use]:
    for node in ast.walk(tree):
        owner = _owner(node.value, scopes.get(id(node), CLASSES)) if isinstance(node, ast.Attribute) else None
        if owner is None or node.attr.startswith("__"):
            continue
        call = calls.get(id(node))
        given = ["**" if isinstance(a, ast.Starred) else "*" for a in call.args] if call else []
        arguments = None if call is None else (*given, *(f"{k.arg}=" for k in call.keywords))
        yield Use(owner, node.attr, arguments, isinstance(node.ctx, ast.Store), node.lineno)


def _owner(value: ast.expr, classes: dict[str, str]) -> str | None:
    """The class of what stands before the dot, None where it is none of TensorRT's."""
    if isinstance(value, ast.Name):
        return classes.get(value.id)
    if isinstance(value, ast.Attribute):
        if isinstance(value.value, ast.Name) and value.value.id == "self":
            return classes.get(value.attr.removeprefix("_"))
        outer = _owner(value.value, classes)
        return (
            f"{outer}.{value.attr}".strip(".") if outer is not None and value.attr[0].isupper() else None
        )  # an enumeration
    return None


def problem(use: Use, signatures: dict[str, dict[str, Any]]) -> str:
    """Why bindings do not take a use; empty when they do.

    `signatures` is class -> name -> list of overloads for a method, each a text of arguments (`flags=` may be left
    out), `ro` or `rw` for a property, `member` for an enumeration's; the module's own names are those of the class "".
    """
    members = signatures.get(use.owner)
    if members is None:
        return f"there is no {use.owner}"
    found = members.get(use.name)
    if found is None and use.owner == "" and use.name in signatures:
        found = signatures[use.name].get("__init__", "member")
    if found is None:
        return f"{use.owner or 'the module'} has no {use.name}"
    if isinstance(found, str):
        if use.arguments is not None:
            return f"{use.name} is no method"
        return f"{use.name} cannot be set" if use.written and found == "ro" else ""
    if use.written:
        return f"{use.name} is a method"
    return (
        ""
        if use.arguments is None or any(_takes(overload.split(), use.arguments) for overload in found)
        else f"{use.name} takes {' or '.join(found)}"
    )


def _takes(parameters: list[str], given: tuple[str, ...]) -> bool:
    if "**" in given:
        return len(given) <= len(parameters) + 1
    positional, named = given.count("*"), [a for a in given if a != "*"]
    names = [p.rstrip("=") for p in parameters]
    filled = {*names[:positional], *(n.rstrip("=") for n in named)}
    unknown = positional > len(names) or any(n.rstrip("=") not in names[positional:] for n in named)
    return not unknown and all(p.endswith("=") or p in filled for p in parameters)


def installed(module: Any, wanted: list[Use]) -> dict[str, dict[str, Any]]:
    """The signatures of the classes that are used, read from the docstrings of installed bindings."""
    plain = {u.name: "member" for u in wanted if u.owner == "" and not u.name[0].isupper() and hasattr(module, u.name)}
    found: dict[str, dict[str, Any]] = {"": plain}
    for owner in {u.owner for u in wanted if u.owner} | {
        u.name for u in wanted if u.owner == "" and u.name[0].isupper()
    }:
        cls: Any = module
        for part in owner.split("."):
            cls = getattr(cls, part, None)
        if cls is not None:
            found[owner] = {
                name: _kind(cls, name) for name in dir(cls) if not name.startswith("__") or name == "__init__"
            }
    return found


def _kind(cls: type, name: str) -> Any:
    thing = inspect.getattr_static(cls, name)
    if isinstance(thing, property):
        return "rw" if thing.fset else "ro"
    if not callable(getattr(cls, name)) or isinstance(getattr(cls, name), cls):
        return "member"
    return [
        text
        for text in map(
            _parameters, re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", getattr(cls, name).__doc__ or "", re.MULTILINE)
        )
        if text is not None
    ]


def _parameters(text: str) -> str | None:
    """`self: X, network: Y, flags: int = 0` as `network flags=`; None for the `*args` that stands before overloads."""
    if text.startswith("*args"):
        return None
    parts = re.split(r", (?=\w+:)", text)
    return " ".join(
        p.partition(":")[0] + ("=" if re.search(r"\s=\s", p) else "") for p in parts if not p.startswith("self")
    )
