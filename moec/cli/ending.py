"""How the command line ends: what went wrong as an error with a code, and streams that are closed."""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import NoReturn

import click

from moec.cli.examples import example_of
from moec.errors import MoecError
from moec.files.refused import refused
from moec.registry import did_you_mean

CLOSED_PIPE = 128 + 13  # SIGPIPE
_CHOICE = re.compile(r"'([^']*)' is not one of (.*)")  # as click words it
_NO_MEMORY = ("can't allocate memory", "Failed to allocate memory")  # PyTorch and ONNX Runtime say it in words only


def as_moec_error(error: BaseException) -> MoecError | None:
    """What ended the program as an error that a user can act on; None for a bug of moec."""
    if isinstance(error, click.Abort):  # what click makes of a KeyboardInterrupt that no signal raised
        error = error.__cause__ or error
    if isinstance(error, MoecError):
        return error
    if isinstance(error, click.UsageError):
        return _usage_error(error)
    if isinstance(error, click.ClickException):
        return MoecError("M201", error.format_message(), "moec", "see `moec --help`")
    if isinstance(error, OSError):
        return refused(error)
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        what = f"there is not enough memory: {(str(error).splitlines() or ['no more is given'])[0]}"
        return MoecError("M302", what, "this machine", "use a machine with more, or a smaller model")
    if isinstance(error, EOFError) or not isinstance(error, Exception):  # SystemExit and its like: none is of moec
        what = f"the model's code ended the program: {type(error).__name__}({str(error) or ''})"
        return MoecError("M219", what, "the model's code", "have it raise an ordinary exception, or none")
    return None


def _usage_error(error: click.UsageError) -> MoecError:
    """What the command line does not take, with the nearest of what it does."""
    where = error.ctx.command_path if error.ctx else "moec"
    what, fix = error.format_message(), f"see `{where} --help`"
    if isinstance(error, click.NoSuchOption) and error.ctx:
        flags = [o for p in error.ctx.command.get_params(error.ctx) for o in (*p.opts, *p.secondary_opts)]
        what = f"no option is called {error.option_name!r}"
        fix = did_you_mean(error.option_name, [flag for flag in flags if flag.startswith("--")], fix)
    elif isinstance(error, click.MissingParameter) and error.ctx:
        fix = example_of(error.ctx.info_name or "", fix)
    elif chosen := _CHOICE.search(what):
        fix = did_you_mean(chosen[1], re.findall(r"'([^']*)'", chosen[2]))
    return MoecError("M201", what, where, fix)


class ClosedPipeError(Exception):
    """Nobody reads what is printed any more; of its own, since click answers the system's error by itself."""


def drop_output() -> int:
    """Let what could not be printed go; returns the exit status."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    return CLOSED_PIPE


@contextmanager
def standard_streams(questions: bool) -> Iterator[None]:
    """Standard streams that are there: a closed one goes nowhere, so that no file that is opened gets its number and
    what is printed.

    Args:
        questions: leave stdin as it is. Otherwise nothing that runs here can ask one, and wait.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
    with ExitStack() as stack:
        if sys.stdout is None:
            stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        if sys.stderr is None:
            stack.enter_context(redirect_stderr(stack.enter_context(Path(os.devnull).open("w"))))
        before, sys.stdin = sys.stdin, sys.stdin if questions else stack.enter_context(Path(os.devnull).open())
        try:
            yield
        finally:
            sys.stdin = before


def leave(status: int) -> NoReturn:
    """End the process without taking apart what it holds.

    Threads are waited for, what others registered for the end runs, and what was printed is written, as at every end of
    Python. Then the system frees all memory at once: to take apart torch's modules and the graphs object by object
    took a quarter of `moec inspect`.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # this and the next are what Python itself calls
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if "ctypes" in sys.modules:  # as with torch: libraries may have printed through C's streams
        with suppress(OSError, AttributeError, TypeError):
            sys.modules["ctypes"].CDLL(None).fflush(None)
    os._exit(status)
