"""`moec plan`: what a model takes in memory and time, from its config alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from moec.cli.console import common, emit, say, say_text
from moec.cli.terminal import TERMINAL
from moec.errors import MoecError
from moec.planning.versus import turns
from moec.shown import count_of, size_of

if TYPE_CHECKING:
    from moec.compiler.foresee import Foreseen
    from moec.planning.estimate import Estimate, Situation

Row = tuple[str, ...]


def _words(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """`a,b` as its parts."""
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _numbers(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """`1,8` as whole numbers. Raises M201."""
    words = _words(context, option, value)
    if not words and option.name == "ranks":
        return ()
    if not words or not all(word.isdecimal() for word in words):
        raise MoecError("M201", f"{value!r} is no list of whole numbers", option.opts[0], "write them as 1,8,64")
    return tuple(int(word) for word in words)


@click.command("plan")
@click.argument("model")
@click.option(
    "--format", "formats", callback=_words, default="bf16", help="Of the weights: bf16,int4,balanced,… (default bf16)."
)
@click.option(
    "--device", "devices", callback=_words, default="", help="h200,rtx4090,…: what fits, and how fast it runs."
)
@click.option("--batch", "batches", callback=_numbers, default="1", help="Texts at once: 1,8,64 (default 1).")
@click.option("--context", type=int, help="Tokens of a text (default 4096, or all that the model's positions reach).")
@click.option("--versus", help="Another model: which of the two reads less for a token, batch by batch.")
@click.option("--ranks", callback=_numbers, default="", help="8,64: what experts on so many devices send a token.")
@click.option(
    "--pass", "pipeline", default="", help="Passes, as for compile: the model that they make, and where they fire."
)
@click.option("-t", "--target", "targets", multiple=True, help="As for compile: would it take the model? Repeatable.")
@common
def plan_command(
    model: str,
    pipeline: str,
    targets: tuple[str, ...],
    formats: tuple[str, ...],
    devices: tuple[str, ...],
    batches: tuple[int, ...],
    context: int | None,
    versus: str | None,
    ranks: tuple[int, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Say what MODEL (a config.json, or a folder that holds one) takes in memory and time; no weight is read."""
    from moec.cli.plan_recipes import recipes
    from moec.compiler.foresee import foresee
    from moec.compiler.plan import plan
    from moec.compiler.rehearsals import Rehearsals

    paper = Rehearsals(model)
    found = plan(
        paper, formats=formats, devices=devices, batches=batches, context=context, versus=versus, ranks=ranks,
        pipeline=pipeline, recipes=recipes(formats),
    )  # fmt: skip
    compiled = foresee(paper, pipeline, targets or ("onnxruntime",)) if pipeline or targets else []
    if as_json:
        emit({**found.to_dict(), "compile": [asdict(each) for each in compiled]})
        return
    for line in _model_lines(found):
        say(line)
    for head, *rows in filter(None, [_rows(found), _rank_rows(found), _beside_rows(found)]):
        say()
        say_text(TERMINAL.table(head, rows))
    for line in [*_notes(found), *(line for each in compiled for line in _compile_lines(each))]:
        say(line)


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
    return lines + [f"note: {what}" for what in shape.notes] + [f"not known: {what}" for what in shape.unknown[:3]]


def _rows(found: Estimate) -> list[Row]:
    head: Row = ("format", "batch", "context", "weights", "state", "in all", "read a step", "a token", "experts")
    device: Row = ("device", "of them", "decode", "prompt") if found.situations[0].device else ()
    return [head + device, *(_row(s) for s in found.situations)]


def _row(s: Situation) -> Row:
    step = s.decode or s.prompt
    memory = s.memory
    row: Row = (
        s.format, str(s.batch), f"{s.context:,}", *map(size_of, (memory.weights, memory.state, memory.total)),
        size_of(step.bytes), size_of(step.bytes / step.tokens), f"{step.experts:.1f}" if step.experts else "",
    )  # fmt: skip
    if s.device is None:
        return row
    needed = str(s.devices) if s.devices else "none fits"
    decode = s.decode_time
    speed = f"{s.batch / decode.high:,.0f} to {s.batch / decode.low:,.0f} tokens/s, {decode.bound}" if decode else ""
    prompt = f"{s.prompt_time.low:,.2f} to {s.prompt_time.high:,.2f} s, {s.prompt_time.bound}" if s.prompt_time else ""
    return (*row, s.device, needed, speed, prompt)


def _rank_rows(found: Estimate) -> list[Row]:
    rows = [
        (str(r.ranks), f"{r.reached:.2f}", size_of(r.bytes_a_token), size_of(r.tensor_parallel_bytes))
        for r in found.ranks
    ]
    return [("ranks", "reached by a token", "sent a token", "by tensor parallelism"), *rows] if rows else []


def _beside_rows(found: Estimate) -> list[Row]:
    if found.versus is None:
        return []
    head: Row = ("batch", f"{found.shape.name} reads a token", f"{found.versus.name} reads a token", "ratio")
    rows = [(str(b.batch), *map(size_of, b.bytes), f"{b.bytes[0] / b.bytes[1]:.2f}") for b in found.beside]
    return [head, *rows]


def _notes(found: Estimate) -> list[str]:
    """What the tables rest on, and what they say."""
    notes = []
    if found.situations[0].device:
        notes.append("times: the roofline, between the shares of bandwidth and rate that others measured on an H200")
    if found.versus is not None:
        first, other = (
            f"{name} ({count_of(shape.total)}, {count_of(shape.active)} active)"
            for name, shape in (("the first", found.shape), ("the other", found.versus))
        )
        least = "the first" if found.beside[0].first_reads_less else "the other"
        changes = turns(found.beside)
        where = f"; this turns at batch {' and '.join(map(str, changes))}" if changes else " at every batch"
        notes.append(f"{first} beside {other}: at batch 1 {least} reads less a token{where}")
    return notes


def _compile_lines(each: Foreseen) -> list[str]:
    """What compiling for a target would do."""
    lines = ["", f"{each.target}: {'refused' if each.refusals else 'takes it'}  ({each.model})"]
    for step in each.steps:
        lines.append(f"  {step.name}: {step.rewrites} rewrites")
        lines += [f"    not {miss}" for miss in step.misses]
    for reason, fix in each.refusals:
        lines += [f"  because {reason}", f"  fix: {fix}"]
    return lines if each.refusals else [*lines, f"  {each.command}"]
