"""`moec plan`: what a model takes in memory and time, from its config alone."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moec.cli import completing
from moec.cli.config import read_config
from moec.cli.console import common, emit, say, say_text
from moec.cli.dotted import read_said
from moec.cli.lists import numbers, words
from moec.cli.overrides import config_option, overridden, set_option
from moec.cli.plan_advice import advice_lines
from moec.cli.plan_devices import RIGHT, device_rows
from moec.cli.plan_serving import origins, server_lines, serving_notes, serving_options, serving_tables
from moec.cli.report_file import PLAN_PAGE, publish, require_replaceable
from moec.cli.terminal import TERMINAL
from moec.cli.wrapping import say_wrapped
from moec.compiler.options import SETTINGS
from moec.errors import MoecError
from moec.shown import count_of, size_of, time_of

if TYPE_CHECKING:
    from moec.compiler.foresee import Foreseen
    from moec.pipeline.pipeline import Pipeline
    from moec.planning.estimate import Estimate, Situation

Row = tuple[str, ...]


@click.command("plan")
@click.argument("model", shell_complete=completing.files)
@click.option(
    "--format",
    "formats",
    callback=words,
    default="bf16",
    shell_complete=completing.plan_formats,
    help="Of the weights: bf16,int4,balanced,… (default bf16).",
)
@click.option(
    "--device",
    "devices",
    callback=words,
    default="",
    shell_complete=completing.plan_devices,
    help="h200,rtx4090,…: what fits, and how fast it runs.",
)
@click.option("--batch", "batches", callback=numbers, default="1", help="Texts at once: 1,8,64 (default 1).")
@click.option("--context", type=int, help="Tokens of a text (default 4096, or all that the model's positions reach).")
@click.option(
    "--state",
    default="bf16",
    shell_complete=completing.plan_states,
    help="Of keys and values: bf16, fp8 or int8 (default bf16).",
)
@click.option(
    "--versus",
    shell_complete=completing.files,
    help="Another model: which of the two reads less for a token, batch by batch.",
)
@click.option("--ranks", callback=numbers, default="", help="8,64: what experts on so many devices send a token.")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    shell_complete=completing.passes,
    help="Passes, as for compile: the model that they make, and where they fire. Repeatable.",
)
@config_option("As for compile: a TOML file, or a preset, for its passes and its target.")
@set_option
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    shell_complete=completing.target,
    help="As for compile: would it take the model? Repeatable.",
)
@serving_options
@click.option(
    "--html", type=click.Path(path_type=Path), help="Write a page with plots of all that is said to this file."
)
@common
def plan_command(
    model: str,
    passes: tuple[str, ...],
    config: Path | None,
    overrides: tuple[str, ...],
    targets: tuple[str, ...],
    formats: tuple[str, ...],
    devices: tuple[str, ...],
    batches: tuple[int, ...],
    context: int | None,
    versus: str | None,
    ranks: tuple[int, ...],
    state: str,
    html: Path | None,
    as_json: bool,
    quiet: bool,
    **serving: Any,
) -> None:
    """Say what MODEL (a config.json, or a folder that holds one) takes in memory and time; no weight is read."""
    from moec.cli.plan_recipes import recipes
    from moec.compiler.foresee import foresee
    from moec.compiler.plan import plan
    from moec.compiler.rehearsals import Rehearsals
    from moec.planning.advice import advise

    if html:
        require_replaceable(html, PLAN_PAGE)
    pipeline, targets = _asked(passes, targets, config, overrides)
    paper = Rehearsals(model)
    found = plan(
        paper,
        formats=formats,
        devices=devices,
        batches=batches,
        context=context,
        versus=versus,
        ranks=ranks,
        pipeline=pipeline,
        recipes=recipes(formats),
        state=state,
        **serving,
    )
    said, wanted = _said(config, passes, overrides), targets or ("onnxruntime",)
    compiled = foresee(paper, pipeline, wanted, said) if pipeline.passes or targets else []
    advice = advise(found)
    if html:
        publish(html, _page(found, model, compiled), PLAN_PAGE)
    if as_json:
        emit({**found.to_dict(), "advice": [asdict(a) for a in advice], "compile": [asdict(each) for each in compiled]})
        return
    for line in _model_lines(found):
        say_wrapped(line)
    tables = [(_rows(found), range(1, 8)), (device_rows(found), RIGHT), (_rank_rows(found), range(5))]
    tables += [(_beside_rows(found), range(4)), *((table, ()) for table in serving_tables(found).values())]
    for (head, *rows), right in [(t, r) for t, r in tables if t]:
        say()
        say_text(TERMINAL.table(head, rows, tuple(right)))
    for line in [*_notes(found), *serving_notes(found), *advice_lines(advice)]:
        say_wrapped(line)
    for line in [*server_lines(found), *(line for each in compiled for line in _compile_lines(each))]:
        say(line)


def _asked(
    passes: tuple[str, ...], targets: tuple[str, ...], config: Path | None, overrides: tuple[str, ...]
) -> tuple[Pipeline, tuple[str, ...]]:
    """The passes and the targets that are asked for; what else a file says is nothing to a plan. Raises M201 for
    `--set` of that."""
    read = read_config(config) if config else {}
    named = {"pipeline": passes} if passes else {}
    found = overridden({**read, **named}, overrides, [*named, *(["target"] if targets else [])])
    said = [said.path[0] for said in read_said(overrides) if len(said.path) == 1]
    other = [key for key in said if key not in (SETTINGS["pipeline"].key, SETTINGS["target"].key)]
    if other:
        fix = "leave it to moec compile; a plan reads pass and target"
        raise MoecError("M201", f"{other[0]} is nothing to a plan", "--set", fix)
    text = str(found.get("target", ""))
    return SETTINGS["pipeline"].read(found.get("pipeline", "")), targets or ((text,) if text else ())


def _said(config: Path | None, passes: tuple[str, ...], overrides: tuple[str, ...]) -> str:
    """How `moec compile` is told the same where a file or a preset says it; the target has an option of its own."""
    if config is None:
        return ""
    kept = [text for text, said in zip(overrides, read_said(overrides), strict=True) if said.path != ("target",)]
    options = [("--config", str(config)), *(("--pass", text) for text in passes), *(("--set", text) for text in kept)]
    return " ".join(map(shlex.join, options))


def _page(found: Estimate, model: str, compiled: Sequence[Foreseen]) -> str:
    """All that is said, as a page."""
    from moec.report.plan_page import plan_page

    about = [(f"Compiling for {each.target}", "\n".join(_compile_lines(each)[1:])) for each in compiled]
    tables = {"Experts on several devices": _rank_rows(found)} if found.ranks else {}
    served = [(title, head, rows) for title, (head, *rows) in (tables | serving_tables(found)).items()]
    return plan_page(found, model, about, served, [*serving_notes(found), *server_lines(found)])


def _model_lines(found: Estimate) -> list[str]:
    shape = found.shape
    lines = [
        f"{shape.name}: {count_of(shape.total)} parameters ({shape.total:,}), {count_of(shape.active)} active a token,"
        f" {count_of(shape.active_without_embedding)} without the input embedding"
    ]
    lines += [f"  {part:<16} {count_of(n):>9}  {n / shape.total:.1%}" for part, n in shape.parts().items() if n]
    kinds = Counter((m.experts, m.top_k, m.hidden, m.intermediate) for m in shape.mixtures)
    for (experts, top_k, hidden, intermediate), layers in sorted(kinds.items()):
        lines.append(f"  {layers} mixtures: {experts} experts, {top_k} a token, {hidden} → {intermediate}")
    if shape.multi_token:
        lines.append(f"  apart from it: {count_of(shape.multi_token)} in layers for multi-token prediction")
    if found.equivalent:
        lines.append(
            f"like a dense model of {count_of(found.equivalent.by_cost)} in the cost of serving, of"
            f" {count_of(found.equivalent.by_quality)} in quality by folklore (the root of active times total)"
        )
    notes = [f"note: {what}" for what in shape.notes]
    return [*lines, *notes, *(f"not known: {what}" for what in _first(shape.unknown))]


def _first(unknown: Sequence[str], most: int = 3) -> list[str]:
    """The first of many, and how many there are more."""
    more = len(unknown) - most
    return [*unknown[:most], *[f"{more} more of this kind; --json names them all"] * (more > 0)]


def _rows(found: Estimate) -> list[Row]:
    head: Row = ("format", "batch", "weights", "state", "in all", "read", "a token", "experts")
    return [head, *dict.fromkeys(map(_row, found.situations))]  # a device changes nothing of it


def _row(s: Situation) -> Row:
    step = s.decode or s.prompt
    memory = s.memory
    return (
        s.format, str(s.batch), *map(size_of, (memory.weights, memory.state, memory.total)),
        size_of(step.bytes), size_of(step.bytes / step.tokens), f"{step.experts:.1f}" if step.experts else "",
    )  # fmt: skip


def _rank_rows(found: Estimate) -> list[Row]:
    rows = [
        (str(r.ranks), f"{r.reached:.2f}", f"{r.remote:.2f}", size_of(r.wire_bytes), size_of(r.tensor_parallel_bytes))
        for r in found.ranks
    ]
    head: Row = ("devices", "reached by a token", "remote ones", "sent a token", "by tensor parallelism")
    return [head, *rows] if rows else []


def _beside_rows(found: Estimate) -> list[Row]:
    if found.versus is None:
        return []
    head: Row = ("batch", f"a token of {found.shape.name}", f"of {found.versus.name}", "ratio")
    rows = [(str(b.batch), *map(size_of, b.bytes), f"{b.bytes[0] / b.bytes[1]:.2f}") for b in found.beside]
    return [head, *rows]


def _notes(found: Estimate) -> list[str]:
    """What the tables rest on."""
    context = found.situations[0].context
    notes = [f"each text with {context:,} tokens of context; read: by a step, and of it for each of its tokens"]
    notes += origins(found)
    return notes


def _compile_lines(each: Foreseen) -> list[str]:
    """What compiling for a target would do."""
    lines = ["", f"{each.target}: {'refused' if each.refusals else 'takes it'}  ({each.model})"]
    for step in each.steps:
        lines.append(f"  {step.name}: {step.rewrites} rewrites")
        lines += [f"    not {miss}" for miss in step.misses]
    for reason, fix in each.refusals:
        lines += [f"  because {reason}", f"  fix: {fix}"]
    if each.effort:
        taken = each.effort
        disk, least, full = map(size_of, (taken.disk_bytes, taken.least_ram_bytes, taken.full_ram_bytes))
        least_time, most_time = map(time_of, taken.seconds)
        lines += [
            f"  takes {disk} on disk; {least} of memory at the least, {full} with the untouched model in memory;",
            f"  {least_time} (a core of its own, no proof) to {most_time} (cores that others use too, a proof),",
            "  longer where passes fit to texts",
        ]
    return lines if each.refusals else [*lines, f"  {each.command}"]
