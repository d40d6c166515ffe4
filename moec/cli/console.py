"""What every verb shares: options, output on stdout and stderr, progress."""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import click

from moec.errors import MoecError
from moec.progress import Progress

INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every verb has. `--debug` is read by `main`."""
    function = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")(function)
    function = click.option("--quiet", is_flag=True, help="No progress on stderr.")(function)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, everything else on stderr.")(
        function
    )


def emit(data: Any) -> None:
    """Print plain data as JSON on stdout."""
    click.echo(json.dumps(data, indent=2, sort_keys=True, default=str, allow_nan=False))


def fail(error: MoecError | None, as_json: bool, debug: bool) -> int:
    """Print an error (None: interrupted) in three lines on stderr; returns the exit status."""
    if error is None:
        click.echo("interrupted\n  where: at your request\n  fix:   nothing was published; run it again", err=True)
        return INTERRUPTED
    if debug:
        traceback.print_exception(error)
    click.echo(str(error), err=True)
    if as_json:
        emit({"ok": False, "error": error.to_dict()})
    return error.exit_code


class Interruption:
    """Ctrl-C that cannot get lost. Where PyTorch catches everything it swallows this too, so it is asked for when a
    stage ends or begins."""

    def __init__(self) -> None:
        self._asked = False

    def install(self) -> None:
        """Note interrupts from now on; where they are ignored, as in a shell's background jobs, they stay so."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)

    def _note(self, *_: Any) -> None:
        self._asked = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was noted and swallowed."""
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt


INTERRUPTION = Interruption()


class QuietProgress(Progress):
    """Says nothing, and can be interrupted."""

    def stage(self, name: str) -> None:
        INTERRUPTION.check()

    def done(self, detail: str = "") -> None:
        INTERRUPTION.check()


class ConsoleProgress(Progress):
    """Stages as lines on stderr; on a terminal the running one shows its bytes."""

    def __init__(self) -> None:
        self._live, self._name, self._start, self._shown = sys.stderr.isatty(), "", 0.0, 0.0

    def stage(self, name: str) -> None:
        INTERRUPTION.check()
        self._name, self._start = name, time.perf_counter()
        if self._live:
            click.echo(f"\r\033[K  {name:<10} …", nl=False, err=True)

    def advance(self, done: int, total: int, unit: str = "", what: str = "") -> None:
        now = time.perf_counter()
        if self._live and (now - self._shown > 0.1 or done >= total):
            self._shown = now
            amount = f"{done / 2**20:,.1f} / {total / 2**20:,.1f} MiB" if unit == "B" else f"{done} / {total}"
            click.echo(f"\r\033[K  {self._name:<10} {amount}  {what[:60]}", nl=False, err=True)

    def done(self, detail: str = "") -> None:
        INTERRUPTION.check()
        start = "\r\033[K" if self._live else ""
        click.echo(f"{start}  {self._name:<10} {detail}  ({time.perf_counter() - self._start:.1f} s)", err=True)


def progress(quiet: bool) -> Progress:
    """Progress on stderr, or none."""
    return QuietProgress() if quiet else ConsoleProgress()
