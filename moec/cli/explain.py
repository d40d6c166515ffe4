"""What `moec explain NAME` says: of a pass, a target, a preset, an operator or an error code."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from typing import Any

from moec import registry
from moec.cli.completing import OPERATORS
from moec.cli.config import preset_text, presets
from moec.errors import CODES, EXIT_CODES, MoecError
from moec.targets.target import Target

_COST = "#   "  # how a line of a preset begins that says what it cost on a model


def explain(name: str) -> tuple[dict[str, Any], str]:
    """What is known of a name, as plain data and as a text for people. Raises M202 with the nearest names."""
    if name in CODES:
        return _code(name)
    if name in registry.names("passes"):
        return _pass(name)
    if (backend := re.split("[:,]", name)[0]) in registry.names("backends"):
        return _target(Target.parse(name).backend if name != backend else name)
    if name in presets():
        return _preset(name)
    operators = [f"moec::{operator}" for operator in OPERATORS]
    if name in operators or f"moec::{name}" in operators:
        return _operator(name.removeprefix("moec::"))
    known = [*registry.names("passes"), *registry.names("backends"), *presets(), *CODES, *operators]
    raise MoecError("M202", f"nothing is called {name!r}", "moec explain", _nearest(name, known))


def _nearest(name: str, known: list[str]) -> str:
    found = registry.did_you_mean(name, known)
    return found if found.startswith("did you mean") else "see `moec ls` for passes, targets and presets"


def _preset(name: str) -> tuple[dict[str, Any], str]:
    text = preset_text(name)
    costs = [line.removeprefix(_COST) for line in text.splitlines() if line.startswith(_COST)]
    data = {"preset": name, "what": presets()[name], "costs": costs, "toml": text}
    return data, f"{name}: a preset; `moec compile MODEL --config {name}` reads\n\n{text}"


def _operator(name: str) -> tuple[dict[str, Any], str]:
    from moec.dialect.described import describe  # imports torch

    data = describe(name)
    return data, f"{data['schema']}\n\n{data['doc']}"


def _code(name: str) -> tuple[dict[str, Any], str]:
    data = {"code": name, "meaning": CODES[name], "exit_code": EXIT_CODES[name[:2]]}
    return data, f"{name} (exit status {data['exit_code']}): {data['meaning']}"


def _target(name: str) -> tuple[dict[str, Any], str]:
    cls = registry.find("backends", name)
    doc = inspect.getdoc(cls)
    options = {key: "|".join(form) if isinstance(form, tuple) else str(form) for key, form in cls.declared.items()}
    text = "\n".join(f"{key}={form}" for key, form in options.items())
    return {"target": name, "options": options, "doc": doc}, f"{name}\n\n{doc}\n\n{text}"


def _pass(name: str) -> tuple[dict[str, Any], str]:
    cls = registry.find("passes", name)
    fields = {f.name: None if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(cls)}
    doc = inspect.getdoc(cls)
    data = {"pass": name, "contract": cls.contract, "after": list(cls.after), "options": fields, "doc": doc}
    options = ", ".join(f"{key}={value!r}" for key, value in fields.items())
    return data, f"{name}({options})\ncontract: {cls.contract}\n\n{doc}\n\n{_in_a_file(name, fields)}"


def _in_a_file(name: str, fields: dict[str, Any]) -> str:
    """How a pass stands in a TOML file; options whose defaults TOML cannot say are left out."""
    said = [f"{key} = {_toml(value)}" for key, value in fields.items() if value is not None]
    return "\n".join(
        ["in a file for --config, with the options that you want:", "", "[[pass]]", f'name = "{name}"', *said]
    )


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)
