"""`--set KEY=VALUE`: single options of passes, and settings, in the place of what a file or a manifest says."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from moec.cli import completing
from moec.cli.config import setting_of
from moec.compiler.options import SETTINGS
from moec.compiler.setting import Names, Real, Switch, Whole
from moec.errors import MoecError
from moec.registry import did_you_mean

if TYPE_CHECKING:
    from moec.pipeline.passes import Pass
    from moec.pipeline.pipeline import Pipeline

_FORM = "write for example --set quantize.bits=8, or --set seed=3"
_TYPED = (Whole, Real, Switch, Names)  # what their texts say is not a text

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completing.keys,
    help="An option of a pass (quantize.bits=8), or a setting as a TOML file says it (seed=3), in the place of what "
    "the file, the manifest or --pass says. Repeatable.",
)


def overridden(
    settings: Mapping[str, Any],
    texts: Sequence[str],
    given: Container[str] = (),
    recorded: Callable[[], Pipeline | None] = lambda: None,
) -> dict[str, Any]:
    """Settings by name, with what `--set` says in the place of what they said.

    Args:
        settings: those of a file and of the command line.
        texts: `KEY=VALUE` each. A key without a dot is a TOML file's; `PASS.OPTION` is an option of a pass that the
            pipeline has, and `PASS.OPTION.KEY` an entry of an option that is a table.
        given: names of settings that the command line says by their own options.
        recorded: the pipeline of a manifest, for settings that have none.

    Raises:
        MoecError: M201 for an unknown key, with the nearest one, for a value that it does not take, and for what is
            said twice.
    """
    pairs = dict[str, str]()
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise MoecError("M201", f"{text!r} is not KEY=VALUE", "--set", _FORM)
        if key.strip() in pairs:
            raise MoecError("M201", f"{key.strip()} is said twice", "--set", "say it once")
        pairs[key.strip()] = value.strip()
    found = dict(settings)
    for key, value in pairs.items():
        if "." not in key:
            name = setting_of(key, "--set")
            if name in given:
                raise MoecError("M201", f"--set {key} and {SETTINGS[name].flag} say the same", "--set", "say it once")
            found[name] = SETTINGS[name].read(_plain(name, value), f"--set {key}")
    changes = {key: value for key, value in pairs.items() if "." in key}
    if changes:
        found["pipeline"] = _changed(found.get("pipeline") or recorded(), changes)
    return found


def _plain(name: str, text: str) -> Any:
    """A setting's value as TOML writes it; a text may stand without quotes."""
    if not isinstance(SETTINGS[name].kind, _TYPED) and text[:1] not in ("'", '"'):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _changed(given: Any, changes: Mapping[str, str]) -> Pipeline:
    """A pipeline with other options of its passes."""
    pipeline: Pipeline = SETTINGS["pipeline"].read("" if given is None else given)
    for key, text in changes.items():
        name, _, option = key.partition(".")
        named = [item for item in pipeline if item.name == name.replace("_", "-")]
        if len(named) != 1:
            raise _which(pipeline, name, key, text, len(named))
        item = _with_option(named[0], option, text)
        pipeline = replace(pipeline, passes=tuple(item if each is named[0] else each for each in pipeline))
    return pipeline


def _which(pipeline: Pipeline, name: str, key: str, text: str, count: int) -> MoecError:
    """The error for a pass that the pipeline has not, or more than once."""
    names = [item.name for item in pipeline]
    if count:
        what, fix = f"the pipeline has {name} {count} times", "write the whole pipeline, with --pass or in a file"
    elif not names:
        what = "there are no passes whose options could be set"
        fix = f'name them with --config FILE, or write --pass "{name}({key.partition(".")[2]}={text})"'
    else:
        what, fix = f"the pipeline has no pass {name!r}", did_you_mean(name, names)
    return MoecError("M201", what, f"--set {key}", fix)


def _with_option(item: Pass, key: str, text: str) -> Pass:
    """The pass with one option changed. Raises M201 for an unknown option, and for a value that it does not take."""
    from moec.pipeline.notation import check_options, make_pass, read_value

    option, *path = key.split(".")
    value = read_value(text)
    try:
        if path:
            inner = getattr(item, option, None)
            value = _with_entry({} if inner is None else inner, path, value, option)
        made = make_pass(item.name, {**item.given, option: value})
        check_options(made)
    except MoecError as error:
        raise MoecError(error.code, error.what, f"--set {item.name}.{key}", error.fix) from None
    return made


def _with_entry(table: Any, path: Sequence[str], value: Any, where: str) -> dict[str, Any]:
    """A table with the entry at `path` changed."""
    if not isinstance(table, Mapping):
        raise MoecError("M201", f"{where} is no table", where, f"set {where} itself")
    first, *rest = path
    if not rest:
        return {**table, first: str(value) if isinstance(value, str) else value}
    return {**table, first: _with_entry(table.get(first, {}), rest, value, f"{where}.{first}")}
