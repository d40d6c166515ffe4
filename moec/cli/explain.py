"""What `moec explain NAME` says: of a pass, a target, a preset, an operator or an error code."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

from moec import registry
from moec.cli.causes import CAUSES
from moec.cli.config import preset_text, presets
from moec.errors import CODES, EXIT_CODES, MoecError
from moec.program.dialect_names import OPERATORS
from moec.targets.declared import declared_by
from moec.targets.target import Target

SHOWN = Path(__file__).parent / "shown"  # a file a pass: what it changes in a tiny program
_COST = "#   "  # how a line of a preset begins that says what it cost on a model
_ATTRIBUTES = "Attributes:"
_ENTRY = re.compile(r"(?P<names>\w+(, \w+)*): (?P<meaning>.*)")


def explain(name: str) -> tuple[dict[str, Any], str]:
    """What is known of a name, as plain data and as a text for people. Raises M202 with the nearest names."""
    if name.upper() in CODES:
        return _code(name.upper())
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
    raise MoecError(
        "M202", f"nothing is called {name!r}", "moec explain", registry.did_you_mean(name, known, "see `moec ls`")
    )


def _operator(name: str) -> tuple[dict[str, Any], str]:
    from moec.dialect.described import describe  # imports torch

    data = describe(name)
    return data, f"{data['schema']}\n\n{data['doc']}"


def _code(name: str) -> tuple[dict[str, Any], str]:
    cause = CAUSES[name]
    data = {
        "code": name,
        "meaning": CODES[name],
        "exit_code": EXIT_CODES[name[:2]],
        "fix": cause.fix,
        "example": cause.example,
    }
    lines = [f"{name} (exit status {data['exit_code']}): {data['meaning']}", "", f"fix:      {cause.fix}"]
    return data, "\n".join([*lines, f"example:  {cause.example}"])


# ------------------------------------------------------------------ targets
def _target(name: str) -> tuple[dict[str, Any], str]:
    doc = inspect.getdoc(registry.find("backends", name)) or ""
    devices, declared = declared_by(name)
    options = {
        key: {"takes": str(option), "default": option.default, "meaning": option.meaning}
        for key, option in declared.items()
    }
    written = f"{name}[:{'|'.join(devices)}]" if devices else name
    text = [f"{written}: a target", "", doc]
    if options:
        text += ["", f"options, as in --target {name}:{next(iter(declared))}=…, with commas between them:"]
        text += [_entry(f"{key}={o['takes']}", o["default"], o["meaning"]) for key, o in options.items()]
    return {"target": name, "devices": list(devices), "options": options, "doc": doc}, "\n".join(text)


def _entry(head: str, default: str, meaning: str) -> str:
    """One option: what it takes, its default, and below what it means."""
    lines = textwrap.wrap(meaning, 100, break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"  {head}  [default: {default}]", *(f"      {line}" for line in lines)])


# ------------------------------------------------------------------ passes
def _pass(name: str) -> tuple[dict[str, Any], str]:
    cls = registry.find("passes", name)
    doc, meanings = divided(inspect.getdoc(cls) or "")
    options = {
        field.name: {
            "type": str(field.type),
            "default": None if field.default is dataclasses.MISSING else field.default,
            "meaning": meanings.get(field.name, ""),
        }
        for field in dataclasses.fields(cls)
    }
    example = _example(name)
    data = {"pass": name, "contract": cls.contract, "after": list(cls.after), "options": options, "doc": doc}
    return data | {"example": example}, "\n".join(_pass_lines(data, example))


def _pass_lines(data: dict[str, Any], example: str) -> list[str]:
    name, options = data["pass"], data["options"]
    lines = [f"{name}: a pass, {data['contract']}", "", data["doc"]]
    if options:
        lines += [
            "",
            f"options, as in --pass '{name}({next(iter(options))}=…)' or --set {name}.{next(iter(options))}=…:",
        ]
        lines += [_entry(f"{key}: {o['type']}", repr(o["default"]), o["meaning"]) for key, o in options.items()]
    if example:
        written, _, changed = example.partition("\n")
        lines += ["", f"what {written} changes in a small model (- before, + after):", "", changed.strip("\n")]
    defaults = {key: o["default"] for key, o in options.items()}
    return [*lines, "", _in_a_file(name, defaults)]


def divided(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring without its list of attributes, and that list: name -> meaning. One entry may have several names."""
    prose, found, rest = doc.partition(_ATTRIBUTES)
    entries, names = dict[str, str](), list[str]()
    for line in inspect.cleandoc(rest).splitlines() if found else ():
        entry = _ENTRY.fullmatch(line)
        if entry is not None:
            names = entry["names"].split(", ")
        for name in names:
            entries[name] = entry["meaning"] if entry else f"{entries[name]} {line.strip()}".strip()
    return prose.strip(), entries


def _example(name: str) -> str:
    """What a pass changes in a tiny program; empty for one of another package."""
    file = SHOWN / f"{name}.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _in_a_file(name: str, fields: dict[str, Any]) -> str:
    """How a pass stands in a TOML file; options whose defaults TOML cannot say are left out."""
    said = [f"{key} = {_toml(value)}" for key, value in fields.items() if value is not None]
    return "\n".join(
        ["in a file for --config, with the options that you want:", "", "[[pass]]", f'name = "{name}"', *said]
    )


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)


# ------------------------------------------------------------------ presets
def _preset(name: str) -> tuple[dict[str, Any], str]:
    text = preset_text(name)
    costs = [line.removeprefix(_COST) for line in text.splitlines() if line.startswith(_COST)]
    raw = tomllib.loads(text)
    passes = {table["name"]: _meant(table) for table in raw["pass"]}
    data = {"preset": name, "what": presets()[name], "costs": costs, "passes": passes, "toml": text}
    lines = [f"{name}: a preset; `moec compile MODEL --config {name}` reads", "", text.rstrip(), "", "what it sets:"]
    for each, said in passes.items():
        lines += [_entry(f"{each}.{key} = {o['value']!r}", repr(o["default"]), o["meaning"]) for key, o in said.items()]
    return data, "\n".join([*lines, "", f"to say one of them otherwise: --config {name} --set {_settable(raw)}=…"])


def _settable(preset: dict[str, Any]) -> str:
    """What of a preset `--set` may say: an entry of its recipe, beside which other bits reach nothing, or an option."""
    for table in preset["pass"]:
        for key in table.get("recipe", ()):
            return f"{table['name']}.recipe.{key}"
    return next(f"{table['name']}.{key}" for table in preset["pass"] for key in table if key != "name")


def _meant(table: dict[str, Any]) -> dict[str, Any]:
    """The options that a `[[pass]]` table gives, with their defaults and what they mean."""
    options = _pass(table["name"])[0]["options"]
    return {key: {"value": value, **options[key]} for key, value in table.items() if key != "name"}
