"""`moec bench`: how fast is an engine, and is it faster than another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moec.cli import completing
from moec.cli.console import common, emit, say
from moec.cli.interruption import INTERRUPTION
from moec.cli.live import QuietProgress
from moec.cli.report_file import Form, json_form, publish, require_replaceable
from moec.cli.settings import WHOLE, trust_options
from moec.cli.terminal import TERMINAL
from moec.errors import MoecError

if TYPE_CHECKING:
    from moec.timing.benchmark import Benchmark

FORMS = {
    ".csv": Form("list of times", lambda text: text.startswith("engine,round,phase,number,ms")),
    ".json": json_form("benchmark", lambda data: {"moments", "timings", "where"} <= set(data)),
    ".html": Form("benchmark", lambda text: "<title>moec bench: " in text[:500]),
    ".svg": Form("plot", lambda text: text.startswith('<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 0 ')),
}


class Rounds(QuietProgress):
    """The number of the round, written between the times: a display that moves while engines run would be timed with
    them."""

    def advance(self, done: int, total: int, unit: str = "", what: str = "") -> None:
        INTERRUPTION.check()
        if TERMINAL.is_live(err=True):
            end = "\n" if done == total else ""
            click.echo(f"\r  {done} of {total} {what}{end}", file=TERMINAL.stream(err=True), nl=False)


@click.command("bench")
@click.argument("engines", nargs=-1, required=True, shell_complete=completing.files)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="DIM=N",
    help="Size of a dynamic dimension, e.g. sequence=16; batch is 1 and the others 128 by default.",
)
@click.option(
    "--max-tokens",
    type=WHOLE,
    default=32,
    show_default=True,
    help="Decoders: tokens that follow the prompt, whose length is sequence.",
)
@click.option("--forward", is_flag=True, help="Time single forward passes of decoders too.")
@click.option("--runs", type=WHOLE, default=None, help="Timed runs of each engine.  [default: 30 forward, 10 texts]")
@click.option("--warmup", type=WHOLE, default=None, help="Untimed runs before them.  [default: 3 forward, 1 text]")
@click.option("--eager", is_flag=True, help="Put the untouched model in eager PyTorch beside them.")
@click.option(
    "--export",
    "exports",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write every time to FILE.csv or FILE.json, or a plot of the runs to FILE.html or FILE.svg. Repeatable.",
)
@click.option("--save", is_flag=True, help="Keep the times in the engines' folders: their pages then show them.")
@trust_options
@common
def bench_command(
    engines: tuple[str, ...],
    sizes: tuple[str, ...],
    exports: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Time ENGINES beside each other, in turns, on the same inputs: is one faster, or is it noise?

    Decoders continue a prompt: time to the first token (prefill), then of each further one (decode). Other engines run
    forward. The speed of each engine beside the first is the median over the rounds, with an interval; all intervals
    hold together in 95 of 100 benchmarks. "no difference shown" is an answer: more --runs may show one.

    Memory is resident memory: an engine's own (loading it, and the peak of the warm-up above that), and the peak of the
    process, with every engine in it.
    """
    from moec import api
    from moec.report.plan_lines import plan_lines, plan_of

    for path in exports:
        _require_writable(path)
    result = api.bench(engines, sizes=_sizes(sizes), progress=QuietProgress() if quiet else Rounds(), **options)
    facts = {engine: api.read_report(engine).facts for engine in engines}
    plans = {engine: plan for engine in engines if (plan := plan_of(facts[engine]))}
    for path in exports:
        _export(result, path)
    if as_json:
        emit(result.to_dict() | ({"plans": plans} if plans else {}))
        return
    for line in [*result.headlines, ""]:
        say(line)
    for table in result.tables():
        say(table.title)
        click.echo(TERMINAL.table(table.columns, table.rows, range(1, len(table.columns))), file=TERMINAL.stream())
        say()
    for line in [*result.findings, *result.preparations, *(line for e in plans for line in plan_lines(e, facts[e]))]:
        say(line)


def _require_writable(path: Path) -> None:
    """Before any work: a mistake must not cost a benchmark."""
    if path.suffix.lower() not in FORMS:
        *others, last = FORMS
        fix = f"end its name in {', '.join(others)} or {last}"
        raise MoecError("M201", f"nothing can be exported as {path.suffix or path.name!r}", "--export", fix)
    if not path.parent.is_dir():
        raise MoecError("M210", "its folder does not exist", str(path), "choose another file")
    require_replaceable(path, FORMS[path.suffix.lower()])


def _export(result: Benchmark, path: Path) -> None:
    from moec.timing.export import exported

    form = path.suffix.lower()
    publish(path, exported(result, form), FORMS[form])


def _sizes(texts: tuple[str, ...]) -> dict[str, int]:
    pairs = [text.partition("=") for text in texts]
    bad = next(
        (
            text
            for text, (name, _, size) in zip(texts, pairs, strict=True)
            if not name or not re.fullmatch(r"[0-9]{1,9}", size) or int(size) < 1
        ),
        None,
    )
    if bad is not None:
        raise MoecError(
            "M201",
            f"cannot read the size {bad!r}",
            "--size",
            "write DIM=N with N from 1 to 999999999, e.g. --size batch=4",
        )
    return {name: int(size) for name, _, size in pairs}
