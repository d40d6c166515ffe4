"""`--set KEY=VALUE`: single options of passes, and settings, in the place of what a file or a manifest says."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moec.cli import completing
from moec.cli.config import setting_of
from moec.cli.dotted import Said, read_said, written
from moec.compiler.options import SETTINGS
from moec.compiler.setting import Names, Real, Switch, Whole
from moec.errors import MoecError
from moec.registry import did_you_mean

if TYPE_CHECKING:
    from moec.pipeline.passes import Pass
    from moec.pipeline.pipeline import Pipeline

_PATTERNS = "rules"  # the option whose keys are patterns of names, which have dots
_EXPANDED = set('"$`\\!')  # what a shell does not leave as it is between double quotes
_TYPED = (Whole, Real, Switch, Names)  # what their texts say is not a text


def config_option(help: str) -> Callable[[Any], Any]:
    """`--config FILE`, which every verb that takes settings has; `help` says what of them it reads."""
    path = click.Path(path_type=Path)
    return click.option("--config", type=path, shell_complete=completing.configs, help=help)


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=completing.keys,
    help="An option of a pass (quantize.experts=8), or a setting as a TOML file says it (seed=3), in the place of what "
    "the file, the manifest or --pass says. Repeatable.",
)


def overridden(
    settings: Mapping[str, Any],
    texts: Sequence[str],
    given: Container[str] = (),
    recorded: Callable[[], Pipeline | None] = lambda: None,
    has_pass: bool = True,
) -> dict[str, Any]:
    """Settings by name, with what `--set` says in the place of what they said.

    Args:
        settings: those of a file and of the command line.
        texts: `KEY=VALUE` each. A key without a dot is a TOML file's; `PASS.OPTION` is an option of a pass that the
            pipeline has, and `PASS.OPTION.KEY` an entry of an option that is a table, in quotes where it has dots.
        given: names of settings that the command line says by their own options.
        recorded: the pipeline of a manifest, for settings that have none.
        has_pass: whether the verb has `--pass`, which is then advised where there are no passes.

    Raises:
        MoecError: M201 for an unknown key, with the nearest one, for a value that it does not take, and for what is
            said twice.
    """
    every = read_said(texts)
    found = dict(settings)
    for said in every:
        if len(said.path) == 1:
            (key,) = said.path
            name = setting_of(key, "--set")
            if name in given:
                raise MoecError("M201", f"--set {key} and {SETTINGS[name].flag} say the same", "--set", "say it once")
            found[name] = SETTINGS[name].read(_plain(name, said.value), f"--set {key}")
    changes = [said for said in every if len(said.path) > 1]
    if changes:
        found["pipeline"] = _changed(found.get("pipeline") or recorded(), changes, has_pass)
    return found


def _plain(name: str, text: str) -> Any:
    """A setting's value as TOML writes it; a text may stand without quotes."""
    if not isinstance(SETTINGS[name].kind, _TYPED) and text[:1] not in ("'", '"'):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _changed(given: Any, changes: Sequence[Said], has_pass: bool) -> Pipeline:
    """A pipeline with other options of its passes."""
    pipeline: Pipeline = SETTINGS["pipeline"].read("" if given is None else given)
    for said in changes:
        named = [item for item in pipeline if item.name == _pass_name(said)]
        if len(named) != 1:
            raise _which(pipeline, said, len(named), has_pass)
        item = _with_option(named[0], said)
        pipeline = replace(pipeline, passes=tuple(item if each is named[0] else each for each in pipeline))
    return pipeline


def _pass_name(said: Said) -> str:
    return said.path[0].replace("_", "-")


def _which(pipeline: Pipeline, said: Said, count: int, has_pass: bool) -> MoecError:
    """The error for a pass that the pipeline has not, or more than once."""
    name, names = said.path[0], [item.name for item in pipeline]
    if count:
        what, fix = f"the pipeline has {name} {count} times", "write the whole pipeline in a file"
        fix += ", or with --pass" if has_pass else ""
    elif not names:
        what, fix = "there are no passes whose options could be set", "name them with --config FILE"
        alone = _alone(said) if has_pass else ""
        fix += f", or write {alone}" if alone else ""
    else:
        what, fix = f"the pipeline has no pass {name!r}", did_you_mean(name, names)
    return MoecError("M201", what, f"--set {said.key}", fix)


def _alone(said: Said) -> str:
    """`--pass` with the pass and that option alone, for a shell; empty where there is no such pass."""
    from moec.pipeline.notation import make_pass

    try:
        text = str(_with_option(make_pass(_pass_name(said), {}), said))
    except (MoecError, TypeError):  # the latter: an option without a default is missing
        return ""
    return "--pass " + (shlex.quote(text) if set(text) & _EXPANDED else f'"{text}"')


def _with_option(item: Pass, said: Said) -> Pass:
    """The pass with one option changed. Raises M201 for an unknown option, and for a value that it does not take."""
    from moec.pipeline.notation import check_options, make_pass, read_value

    _, option, *path = said.path
    _require_quotes(said)
    value = read_value(said.value)
    try:
        if path:
            inner = getattr(item, option, None)
            value = _with_entry({} if inner is None else inner, path, value, (option,))
        made = make_pass(item.name, {**item.given, option: value})
        check_options(made)
        _require_effect(made, option)
    except MoecError as error:
        raise MoecError(error.code, error.what, f"--set {item.name}.{written(said.path[1:])}", error.fix) from None
    return made


def _require_effect(made: Pass, option: str) -> None:
    """Raise M201 for bits of all kinds where a recipe says those of each: nothing would take them."""
    from moec.quantization.settings import KINDS

    recipe = getattr(made, "recipe", None)
    if option == "bits" and isinstance(recipe, Mapping) and set(KINDS) <= set(recipe):
        what = "nothing takes these bits: the pass has a recipe, which says those of every kind"
        fix = f"say the kind: --set {made.name}.experts=8, or --set {made.name}.recipe.down=8 for last matrices"
        raise MoecError("M201", what, "--set", fix)


def _require_quotes(said: Said) -> None:
    """Raise M201 for a pattern with dots that has no quotes: they would be taken for keys of tables."""
    from moec.quantization.settings import OF_A_RULE

    head, path = said.path[:2], said.path[2:]
    ends = len(path) - (len(path) > 1 and path[-1] in OF_A_RULE)
    if head[1] == _PATTERNS and ends > 1 and not any(said.quoted[2:]):
        quoted = written([*head, ".".join(path[:ends]), *path[ends:]])
        fix = f"write it in quotes: --set {shlex.quote(f'{quoted}={said.value}')}"
        raise MoecError("M201", "a pattern that has dots stands without quotes", f"--set {said.key}", fix)


def _with_entry(table: Any, path: Sequence[str], value: Any, where: tuple[str, ...]) -> dict[str, Any]:
    """A table with the entry at `path` changed."""
    if not isinstance(table, Mapping):
        raise MoecError("M201", f"{written(where)} is no table", written(where), f"set {written(where)} itself")
    first, *rest = path
    if not rest:
        return {**table, first: str(value) if isinstance(value, str) else value}
    return {**table, first: _with_entry(table.get(first, {}), rest, value, (*where, first))}
