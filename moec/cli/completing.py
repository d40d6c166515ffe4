"""What a shell offers as the value of an option or an argument. Imports nothing slow: a shell asks at every press of a
key."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from moec import registry
from moec.cli.config import presets
from moec.compiler.setting import Choice, Switch
from moec.errors import CODES
from moec.program.dialect_names import OPERATORS
from moec.targets.declared import declared_by

Offer = Iterator[CompletionItem]
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
KINDS = ("passes", "targets", "presets")  # what `moec ls` lists


def _completer(offered: Callable[[str], Iterable[CompletionItem | str]]) -> Completer:
    """A completer of what is offered for a word that was begun; names that begin otherwise are left out."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        items = [CompletionItem(each) if isinstance(each, str) else each for each in offered(begun)]
        return [item for item in items if item.type != "plain" or str(item.value).startswith(begun)]

    return complete


def _listed(names: Callable[[], Iterable[str]]) -> Completer:
    """A completer of names with commas between them; one that was written already is not offered again."""

    def offered(begun: str) -> Iterator[str]:
        *said, _ = begun.split(",")
        yield from (",".join([*said, name]) for name in names() if name not in said)

    return _completer(offered)


def _described(names: Mapping[str, str]) -> Offer:
    """Names with what each is."""
    yield from (CompletionItem(name, help=what.split(": ")[0][:80]) for name, what in names.items())


# ------------------------------------------------------------------ files
def _files(kind: str) -> Callable[[str], Offer]:
    return lambda begun: iter([CompletionItem(begun, type=kind)])


files = _completer(_files("file"))


named_files = _completer(lambda begun: [] if "=" in begun else _files("file")(begun))  # no shell knows files behind `=`


def _kinds_or_folders(begun: str) -> Iterator[CompletionItem | str]:
    yield from KINDS
    yield from _files("dir")(begun)


def _presets_or_files(begun: str) -> Offer:
    yield from _described(presets())
    yield from _files("file")(begun)


kinds = _completer(_kinds_or_folders)
configs = _completer(_presets_or_files)
preset_names = _completer(lambda begun: _described(presets()))


# ------------------------------------------------------------------ names
def _explained(begun: str) -> Iterator[CompletionItem | str]:
    yield from registry.names("passes")
    yield from targets(begun) if ":" in begun else registry.names("backends")
    yield from _described(presets())
    yield from _described(CODES)
    yield from (f"moec::{name}" for name in OPERATORS)


names = _completer(_explained)
passes = _completer(lambda begun: registry.names("passes"))
passes_or_all = _completer(lambda begun: [*registry.names("passes"), "all"])
workers = _completer(lambda begun: ["local:", "ray://"])


# ------------------------------------------------------------------ targets
def targets(begun: str) -> Iterator[str]:
    """Targets: the backend, then its devices and its options, then what an option takes."""
    backend, colon, rest = begun.partition(":")
    if not colon:
        yield from registry.names("backends")
        if begun in registry.names("backends"):
            yield f"{begun}:"
        return
    if backend not in registry.names("backends"):
        return
    devices, options = declared_by(backend)
    *said, last = rest.split(",")
    head, key = begun[: len(begun) - len(last)], last.partition("=")[0]
    if "=" in last:
        yield from (f"{head}{key}={word}" for word in (options[key].words if key in options else ()))
        return
    if all(re.fullmatch(r"sm\d+", part) for part in said):  # several architectures; one of any other device
        yield from (f"{head}{device}" for device in devices if device not in said)
    written = {part.partition("=")[0] for part in said}
    for name in options:
        bare = re.sub("[A-Z]+", "", name)  # `max_` of `max_DIMENSION`
        yield from () if name in written else [head + (f"{name}=" if bare == name else bare)]


def _precisions(begun: str) -> list[str]:
    options = [declared_by(name)[1] for name in registry.names("backends")]
    return list(dict.fromkeys(word for o in options if "precision" in o for word in o["precision"].words))


target = _completer(targets)
precision = _completer(_precisions)


# ------------------------------------------------------------------ plans
def _formats() -> list[str]:
    from moec.planning.formats import FORMATS

    return list(dict.fromkeys([*FORMATS, *presets()]))


def _devices() -> list[str]:
    from moec.planning.devices import devices

    return ["cpu", "cpu-int8", *devices()]


def _links() -> list[str]:
    from moec.planning.links import links

    return list(links())


def _states(begun: str) -> list[str]:
    from moec.planning.formats import STATES

    return list(STATES)


plan_formats = _listed(_formats)
plan_devices = _listed(_devices)
plan_links = _listed(_links)
plan_places = _listed(lambda: ["ram", "disk", *_links()])
plan_states = _completer(_states)
plan_prices = _listed(lambda: [f"{name}=" for name in _devices()])
plan_loads = _completer(lambda begun: ["uniform", "zipf:", CompletionItem(begun, type="file")])


# ------------------------------------------------------------------ `--set`
def _keys(begun: str) -> Iterator[str]:
    from moec.compiler.options import SETTINGS

    key, equals, _ = begun.partition("=")
    kinds = {s.key: s.kind for s in SETTINGS.values()}
    if equals:
        kind = kinds.get(key)
        words = ("true", "false") if isinstance(kind, Switch) else kind.names if isinstance(kind, Choice) else ()
        yield from (f"{key}={word}" for word in words)
        return
    name, dot, _ = key.partition(".")
    if dot:
        yield from (f"{name}.{option}=" for option in options_of_pass(name))
        return
    yield from (f"{name}." for name in registry.names("passes") if options_of_pass(name))
    yield from (f"{name}=" for name in kinds)


@cache
def options_of_pass(name: str) -> tuple[str, ...]:
    """The options of a built-in pass, read off its file: to import it would take seconds. Empty where there is none."""
    found = importlib.util.find_spec(f"moec.passes.{name.replace('-', '_')}") if name.isascii() else None
    if found is None or found.origin is None:
        return ()
    wanted = "".join(part.capitalize() for part in name.split("-"))
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == wanted), [])
    fields = [node for node in body if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.dump(node.annotation)]
    return tuple(node.target.id for node in fields if isinstance(node.target, ast.Name))


keys = _completer(_keys)
