"""`moec probe`: how fast this machine is, for plans for the device `cpu`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from moec.cli.console import common, emit, progress, say, say_text
from moec.cli.live import clear_screen
from moec.cli.terminal import TERMINAL
from moec.errors import MoecError
from moec.shown import size_of

if TYPE_CHECKING:
    from moec.planning.probed import Record


@click.command("probe")
@click.option("--show", is_flag=True, help="Show what was measured before; measure nothing.")
@common
def probe_command(show: bool, as_json: bool, quiet: bool) -> None:
    """Measure this machine's processor in a few minutes, with engines that moec makes, and keep the figures.

    `moec plan --device cpu` rests on them. They lie in the folder of `moec cache`, as probe.json, and hold for this
    machine and these versions of moec and ONNX Runtime. Measure when nothing else runs.
    """
    from moec.planning.probed import find_record, place

    record = find_record() if show else _measured(quiet)
    if as_json:
        emit(msgspec.to_builtins(record))
        return
    for line in _lines(record):
        say(line)
    say_text(TERMINAL.table(*_table(record)))
    path = place()
    kept = (
        f"kept in {path}" if path is not None and path.is_file() else "not kept: the cache is off or cannot be written"
    )
    say(kept)


def _measured(quiet: bool) -> Record:
    from moec.execution.memory import available_bytes
    from moec.planning.probed import keep
    from moec.timing.probe import Sizes, probe

    free, sizes = available_bytes(), Sizes()
    if free < sizes.memory_bytes:
        what = f"{size_of(free)} of memory are free, and measuring takes {size_of(sizes.memory_bytes)}"
        raise MoecError("M302", what, "moec probe", "end what else runs, or measure on another machine")
    with tempfile.TemporaryDirectory(prefix="moec-probe-") as folder:
        record = probe(Path(folder), sizes, progress=progress(quiet))
    clear_screen()
    keep(record)
    return record


def _lines(record: Record) -> list[str]:
    read = ", ".join(f"{rate / 1e9:.1f} GB/s by {threads}" for threads, rate in record.read.items())
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items() if version)
    token = record.calls["token"]
    return [
        f"{record.machine}; {versions}; {record.made}",
        f"reads {read} threads",
        f"a call takes {1e6 * token.a_call:.0f} µs, and {1e6 * token.a_layer:.0f} for each layer, beside all products",
        f"a plan's interval: from {record.low:.2f} to {record.high:.2f} of what these figures come to",
    ]


def _table(record: Record) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """GB/s of weights at one row, GFLOP/s at many, of products and of experts."""
    from moec.timing.probe_engines import FORMS

    forms = [form for form in FORMS if form.name in record.products]
    head = ("form", "products, 1 row", "products, most rows", "an expert, 1 row", "an expert, most rows")
    rows = []
    for form in forms:
        made, experts = record.products[form.name], record.experts[form.name]
        cells = [
            text
            for costs in (made, experts)
            for text in (
                _rate(form.bytes_a_weight, costs.a_weight[0], "{:.1f} GB/s"),
                _rate(2 * costs.rows[-1], costs.a_weight[-1], "{:,.0f} GFLOP/s"),
            )
        ]
        rows.append((form.name, *cells))
    return head, rows


def _rate(what: float, seconds: float, shown: str) -> str:
    """So much in so many seconds, by 10^9; a dash where the fit left no time to it."""
    return shown.format(what / seconds / 1e9) if seconds else "–"
