"""The command line: `moec VERB …`, the same program as `python -m moec`.

Nothing heavy is imported here: torch takes seconds, and `moec --help` must not.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from moec.cli.console import fail
from moec.cli.ending import ClosedPipeError, as_moec_error, drop_output, leave, standard_streams
from moec.cli.examples import STATUS, epilogue
from moec.cli.interruption import INTERRUPTION
from moec.cli.live import clear_screen
from moec.cli.terminal import TERMINAL
from moec.errors import MoecError
from moec.registry import did_you_mean
from moec.startup import seldom_collected
from moec.version import __version__

COMPLETION = "_MOEC_COMPLETE"  # the variable by which a shell's script asks
# verb -> module of moec.cli that defines it; imported when the verb is used
VERBS = {
    "compile": "build", "build": "build", "verify": "prove", "bench": "bench", "run": "run",
    "plan": "plan", "inspect": "look", "ls": "shelf", "cp": "copying", "diff": "shelf", "check": "check",
    "attest": "attest", "explain": "look", "doctor": "look", "completion": "completion", "routers": "routers",
    "probe": "probe", "tiny": "tiny", "cache": "tidy", "clean": "tidy",
}  # fmt: skip
SUMMARIES = {
    "compile": "Compile MODEL into a verified engine folder.",
    "build": "Finish an engine of --no-build with the runtime of this machine.",
    "verify": "Prove an engine against its source again, or against another engine.",
    "bench": "Time engines beside each other.",
    "run": "Continue a prompt with a decoder, or run any engine once.",
    "plan": "Say what MODEL takes in memory and time, from its config alone; loads no weights.",
    "probe": "Measure this machine's processor, for `moec plan --device cpu`.",
    "inspect": "Show blocks, routing, parameters and FLOPs of a model or an engine.",
    "routers": "Say how a mixture's routers divide a text: load, dead experts, specialisation, reuse.",
    "ls": "List passes, targets and presets, or the engines in a folder.",
    "cp": "Copy a preset to a file, to be changed.",
    "tiny": "Write a tiny random model of MODEL's architecture, to try the whole way in seconds.",
    "diff": "Show what two engines differ in.",
    "check": "Fail when a model, a text, a setting or a file is no longer what a manifest says.",
    "attest": "Write where an engine comes from, as an in-toto statement and a bill of materials.",
    "explain": "Explain a pass, a target, a preset or an error code.",
    "doctor": "Show what this machine can build and run.",
    "cache": "Show the weight cache (quantized weights, kept between compiles), or prune it.",
    "clean": "Remove what killed runs left behind in a folder.",
    "completion": "Print the script that lets a shell complete moec's commands.",
}


class LazyGroup(click.Group):
    """A group that imports a verb's module only when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            if ctx.resilient_parsing:  # a shell asks how the word could go on
                return None
            fix = did_you_mean(cmd_name, list(VERBS), "see `moec --help`, or `moec VERB --help`")
            raise MoecError("M201", f"no verb is called {cmd_name!r}", "moec", fix)
        command: click.Command = getattr(importlib.import_module(f"moec.cli.{VERBS[cmd_name]}"), f"{cmd_name}_command")
        command.epilog = epilogue(cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ClosedPipeError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    epilog=STATUS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="moec")
@click.pass_context
def cli(context: click.Context) -> None:
    """A compiler for mixture-of-experts: a PyTorch model in, a verified engine out."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        return
    try:
        Path.cwd()
    except FileNotFoundError:  # torch would end the process, without a word of where
        what = "the current directory is no longer there"
        raise MoecError("M218", what, os.environ.get("PWD", "."), "go to another one: cd /tmp") from None


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with the status that the error's code says. Without `argv` it is the process's own,
    which ends then and there, see `leave`."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    arguments = sys.argv[1:] if argv is None else argv
    if COMPLETION in os.environ:  # a shell asks how a command could go on
        importlib.import_module("moec.cli.completion")
        cli.main(arguments, prog_name="moec")
    debug, as_json = "--debug" in arguments, "--json" in arguments
    INTERRUPTION.install()
    with standard_streams(questions=debug), seldom_collected():
        try:
            status: Any = cli.main(arguments, standalone_mode=False)
            sys.stdout.flush()
        except BaseException as error:
            status = _ended(error, arguments, as_json, debug)
        finally:
            INTERRUPTION.remove()
            clear_screen()
            TERMINAL.reset()
        status = status if isinstance(status, int) else 0
        if argv is None:
            leave(status)
    sys.exit(status)


def _ended(error: BaseException, arguments: list[str], as_json: bool, debug: bool) -> int:
    """Say why the command line ended; returns the exit status."""
    clear_screen()
    if isinstance(error, ClosedPipeError | BrokenPipeError):
        return drop_output()
    if isinstance(error, click.Abort | KeyboardInterrupt) and INTERRUPTION.seen:
        return INTERRUPTION.report()
    known = as_moec_error(error)
    if known is None and debug:
        raise error
    first = (str(error).splitlines() or [""])[0]
    command, fix = " ".join(["moec", *arguments]), "run it again with --debug and report the traceback"
    return fail(known or MoecError("M799", f"{type(error).__name__}: {first}", command, fix), as_json, debug)
