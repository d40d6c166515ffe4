"""`moec tiny`: a tiny random model of an architecture."""

from __future__ import annotations

from pathlib import Path

import click

from moec.cli import completing
from moec.cli.console import common, emit, say
from moec.cli.settings import WHOLE
from moec.shown import count_of


@click.command("tiny")
@click.argument("model", shell_complete=completing.files)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", type=WHOLE, default=0, help="Of the weights.  [default: 0]")
@common
def tiny_command(model: str, out: Path, seed: int, as_json: bool, quiet: bool) -> None:
    """Write a tiny random model of MODEL's architecture to the new folder OUT.

    Vocabulary, tokenizer, experts, routing and kinds of layers stay; widths, heads and depth shrink. No weight of MODEL
    is read. What moec does with OUT in seconds, it does with MODEL in the same way.
    """
    from moec.compiler.tiny import tiny

    count = tiny(model, out, seed)
    emit({"folder": str(out), "parameters": count}) if as_json else say(f"{out}  {count_of(count)} parameters")
