"""What every verb shares: options, output on stdout and stderr, progress."""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from moec.cli.annotations import annotation, are_wanted
from moec.cli.foreign import foreign_streams
from moec.cli.live import ConsoleProgress, QuietProgress, clear_screen
from moec.cli.terminal import TERMINAL
from moec.errors import MoecError
from moec.progress import Progress

VERSION_KEY, SCHEMA_VERSION = "schema_version", 1  # it rises when a name goes, or comes to mean something else


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every verb has, and streams of its own while it runs. `main` reads `--debug`, too."""

    @functools.wraps(function)
    def verb(*args: Any, **options: Any) -> Any:
        with foreign_streams():
            return function(*args, **options)

    for option in reversed(_OPTIONS):
        verb = option(verb)
    return verb


def _raise_verbosity(context: click.Context, parameter: click.Parameter, count: int) -> None:
    TERMINAL.verbosity = count


def _open_log(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is not None and not context.resilient_parsing:
        TERMINAL.open_log(path)


def _debug(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    TERMINAL.debug = wanted


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, everything else on stderr."),
    click.option("-q", "--quiet", is_flag=True, help="No progress on stderr."),
    click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=_raise_verbosity,
        help="Say what passes and checks found, and the peak of memory; -vv: every step, and what libraries say.",
    ),
    click.option(
        "--log",
        type=click.Path(path_type=Path, dir_okay=False),
        expose_value=False,
        callback=_open_log,
        help="Append all that -vv would say to this file, with times, and the traceback of an error.",
    ),
    click.option("--debug", is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks."),
)


def say(text: str = "", err: bool = False, nl: bool = True, **style: Any) -> None:
    """Print a text on stdout or stderr; names and other texts of foreign origin cannot steer the terminal."""
    TERMINAL.write(text, err, nl, **style)


def say_verdict(text: str) -> None:
    """Print a line on stdout with its verdict in colour, where there is colour."""
    say_text(TERMINAL.verdict(text))


def say_text(text: str) -> None:
    """Print on stdout what `TERMINAL` made: its colours are ours, and foreign texts in it are spelled out already."""
    click.echo(text, file=TERMINAL.stream())


def emit(data: Mapping[str, Any]) -> None:
    """Print plain data as a JSON object on stdout, with the version of what all verbs print."""
    data = {VERSION_KEY: SCHEMA_VERSION, **data}
    click.echo(json.dumps(data, indent=2, sort_keys=True, default=str, allow_nan=False), file=TERMINAL.stream())


def fail(error: MoecError, as_json: bool, debug: bool) -> int:
    """Print an error in three lines on stderr; returns the exit status."""
    clear_screen()
    if debug:
        traceback.print_exception(error)
    else:
        TERMINAL.note("".join(traceback.format_exception(error)))
    _say_error(error)
    if are_wanted(TERMINAL.annotate):
        say(annotation(error), err=True)
    if as_json:
        emit({"ok": False, "error": error.to_dict()})
    return error.exit_code


def _say_error(error: MoecError) -> None:
    """The three lines: what is wrong in red, the way out in green."""
    head, *rest = str(error).splitlines()
    say(head, err=True, fg="red", bold=True)
    for line in rest:
        say(line, err=True, fg="green" if line.startswith("  fix:") else None)


@contextmanager
def waiting(what: str, quiet: bool) -> Iterator[None]:
    """On a terminal, show that something runs and for how long; no line of it stays."""
    progress(quiet).stage(what)
    try:
        yield
    finally:
        clear_screen()


def progress(quiet: bool) -> Progress:
    """Progress on stderr, or none."""
    return QuietProgress() if quiet else ConsoleProgress()
