"""The options of the command line that are settings of a compilation: made from `moec.compiler.options.Options`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from moec.cli import completing
from moec.compiler.options import EXAM, SETTINGS
from moec.compiler.setting import Choice, File, Folder, Name, Names, PassList, Real, Setting, Switch, Whole

Command = Callable[..., Any]
WHOLE = click.IntRange(0, 2**63 - 1)  # what 64 bits hold


SHORT = {"target": "-t"}


def setting_options(*names: str) -> Callable[[Command], Command]:
    """The options of a verb that takes these settings; all of them when none is named."""

    def decorate(function: Command) -> Command:
        for name in reversed(names or tuple(SETTINGS)):
            function = _option(SETTINGS[name])(function)
        return function

    return decorate


def model_options(function: Command) -> Command:
    """The options of verbs that open a model."""
    return setting_options("inputs")(trust_options(setting_options("cache", "leave_out")(function)))


def trust_options(function: Command) -> Command:
    """What moec does only when it is told to; no file says these, and no manifest."""
    function = click.option("--allow-pickle", is_flag=True, help="Read weights from pickles.")(function)
    help = "Run code that comes with the model, or a model of code that an engine's manifest names."
    return click.option("--trust-remote-code", is_flag=True, help=help)(function)


def run_option(function: Command) -> Command:
    """Of verbs that say what an engine was proven on."""
    help = "Fail (exit status 1) where the engine has not run on what it is for, only on a stand-in."
    return click.option("--require-run", is_flag=True, help=help)(function)


def text_options(function: Command) -> Command:
    """The options of verbs that judge an engine on a text."""
    return setting_options(*EXAM)(function)


def given_settings(context: click.Context) -> dict[str, Any]:
    """The settings that the command line gives, by name; one that equals its default is given, too."""
    given = [n for n in SETTINGS if context.get_parameter_source(n) not in (None, ParameterSource.DEFAULT)]
    return {name: context.params[name] for name in given}


def _option(setting: Setting) -> Callable[[Command], Command]:
    kind, default = setting.kind, f"  [default: {setting.shown}]" if setting.shown else ""
    if isinstance(kind, Switch):
        flags, word = f"{setting.flag}/--no-{setting.flag[2:]}", setting.flag[2:] if setting.default else "no"
        return click.option(flags, setting.name, default=setting.default, help=f"{setting.help}  [default: {word}]")
    several = isinstance(kind, Names | PassList)
    return click.option(
        *([SHORT[setting.name]] if setting.name in SHORT else []),
        setting.flag,
        setting.name,
        type=_click_type(setting),
        multiple=several,
        default=() if several else setting.default,
        metavar=setting.metavar or None,
        callback=None if isinstance(kind, PassList) else _reader(setting),  # passes need torch: read later
        shell_complete=_completer(setting),
        help=setting.help + default,
    )


def _completer(setting: Setting) -> completing.Completer | None:
    """What a shell offers as a setting's value, where its type does not say it: names of files are texts to moec."""
    known = {"target": completing.target, "pipeline": completing.passes, "workers": completing.workers}
    return known.get(setting.name, completing.files if isinstance(setting.kind, Name) else None)


def _reader(setting: Setting) -> Callable[[click.Context, click.Parameter, Any], Any]:
    return lambda context, parameter, value: setting.read(value)


def _click_type(setting: Setting) -> Any:
    kind = setting.kind
    if isinstance(kind, Choice):
        return click.Choice(kind.names)
    path = click.Path(path_type=Path)
    types = {Whole: click.INT, Real: click.FLOAT, Folder: path, File: path}
    return types.get(type(kind), click.STRING)
