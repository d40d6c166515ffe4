"""What every verb shares: options, output on stdout and stderr, progress."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from moec.cli.annotations import annotation, are_wanted
from moec.errors import MoecError
from moec.files.workplace import abandon
from moec.progress import Progress
from moec.shown import one_line, shown

ENDED_BY_SIGNAL = 128  # and the signal's number is what shells say of a program that one ended


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every verb has. `--debug` is read by `main`."""
    function = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")(function)
    function = click.option("--quiet", is_flag=True, help="No progress on stderr.")(function)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, everything else on stderr.")(
        function
    )


def say(text: str = "", err: bool = False, nl: bool = True) -> None:
    """Print a text on stdout or stderr; names and other texts of foreign origin cannot steer the terminal."""
    click.echo(shown(text), err=err, nl=nl)


def emit(data: Any) -> None:
    """Print plain data as JSON on stdout."""
    click.echo(json.dumps(data, indent=2, sort_keys=True, default=str, allow_nan=False))


def publish(path: Path, text: str) -> None:
    """Write a report where the user asked for it. Raises M210 when it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MoecError(
            "M210", f"the report cannot be written: {error.strerror}", str(path), "choose another file"
        ) from error


def fail(error: MoecError, as_json: bool, debug: bool) -> int:
    """Print an error in three lines on stderr; returns the exit status."""
    if debug:
        traceback.print_exception(error)
    say(str(error), err=True)
    if are_wanted():
        say(annotation(error), err=True)
    if as_json:
        emit({"ok": False, "error": error.to_dict()})
    return error.exit_code


class Interruption:
    """Ctrl-C, and signals that ask to end.

    Ctrl-C raises KeyboardInterrupt, so that what was begun is taken back. Where PyTorch catches everything it swallows
    this too, so it is asked for when a stage ends or begins. SIGTERM and SIGHUP have to end the process whatever it is
    doing, also where an exception would pass through C++: they remove its work folders at once, and end it.
    """

    def __init__(self) -> None:
        self._asked = self.seen = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Note signals from now on; where they are ignored, as in a shell's background jobs, they stay so."""
        self._asked = self.seen = False
        if threading.current_thread() is not threading.main_thread():
            return  # only that one hears signals
        for name, handler in (("SIGINT", self._note), ("SIGTERM", self._end), ("SIGHUP", self._end)):
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                self._before[number] = signal.signal(number, handler)

    def remove(self) -> None:
        """Leave signals as they were."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, *_: Any) -> None:
        self._asked = self.seen = True
        raise KeyboardInterrupt

    def _end(self, number: int, *_: Any) -> None:
        abandon()
        with contextlib.suppress(OSError):  # not through Python's streams: one may be in use at this moment
            os.write(2, _interrupted(f"by {signal.Signals(number).name}").encode() + b"\n")
        os._exit(ENDED_BY_SIGNAL + number)

    def check(self) -> None:
        """Raise KeyboardInterrupt if one was noted and swallowed."""
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def report(self) -> int:
        """Say on stderr that Ctrl-C ended the program; returns the exit status."""
        say(_interrupted("at your request"), err=True)
        return ENDED_BY_SIGNAL + signal.SIGINT


def _interrupted(how: str) -> str:
    return f"interrupted\n  where: {how}\n  fix:   no half engine was published; run it again"


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
        self._live = sys.stderr is not None and sys.stderr.isatty()
        self._name, self._start, self._shown = "", 0.0, 0.0

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
            click.echo(f"\r\033[K  {self._name:<10} {amount}  {one_line(what)[:60]}", nl=False, err=True)

    def done(self, detail: str = "") -> None:
        INTERRUPTION.check()
        start = "\r\033[K" if self._live else ""
        click.echo(f"{start}  {self._name:<10} {shown(detail)}  ({time.perf_counter() - self._start:.1f} s)", err=True)


def progress(quiet: bool) -> Progress:
    """Progress on stderr, or none."""
    return QuietProgress() if quiet else ConsoleProgress()
