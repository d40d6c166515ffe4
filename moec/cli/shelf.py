"""`moec ls`, `moec diff`: what there is, and what two engines differ in."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click

from moec import registry
from moec.cli.completing import KINDS, kinds
from moec.cli.config import presets
from moec.cli.console import common, emit, say, say_text
from moec.cli.terminal import TERMINAL
from moec.shown import size_of

if TYPE_CHECKING:
    from moec.compiler.shelf import Kept

_COLUMNS = ("engine", "target", "max |d|/std", "size", "age", "verdict")
_WIDTH = 100  # columns of a line that says what something is
_REST = "moec explain NAME  says the rest of each"
_AGES = ((86400 * 2, 86400, "days"), (3600 * 2, 3600, "hours"), (60 * 2, 60, "minutes"), (0, 1, "seconds"))


@click.command("ls")
@click.argument("what", required=False, shell_complete=kinds)
@common
def ls_command(what: str | None, as_json: bool, quiet: bool) -> None:
    """List passes, targets, presets, or (without WHAT) all of them; or the engines in the folder WHAT."""
    if what is not None and what not in KINDS:
        _engines(Path(what), as_json)
    elif what is not None:
        rows = _rows(what)
        emit({what: rows}) if as_json else say(f"{_table(rows)}\n\n{_REST}")
    else:
        every = {kind: _rows(kind) for kind in KINDS}
        tables = [f"{kind}\n{_table(rows)}" for kind, rows in every.items()]
        emit(every) if as_json else say("\n\n".join([*tables, _REST]))


def _rows(kind: str) -> dict[str, str]:
    if kind == "presets":
        return presets()
    group: registry.Group = "passes" if kind == "passes" else "backends"
    return {name: _summary(registry.doc(group, name)) for name in registry.names(group)}


def _summary(doc: str) -> str:
    """The first sentence of what a pass or a target says of itself."""
    paragraph = doc.split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[\w`)]\.) ", paragraph)[0].rstrip(".")


def _table(rows: dict[str, str]) -> str:
    """A line each. Those of other packages may have longer sentences, which are cut."""
    heads = {name: f"{name:<16} " for name in rows}
    lines = {name: shorten(line, max(_WIDTH - len(heads[name]), 20), placeholder=" …") for name, line in rows.items()}
    return "\n".join(heads[name] + lines[name] for name in rows)


def _engines(folder: Path, as_json: bool) -> None:
    from moec.compiler.shelf import engines_in

    found = engines_in(folder)
    if as_json:
        emit({"engines": [{**dataclasses.asdict(kept), "folder": str(kept.folder)} for kept in found]})
        return
    table = TERMINAL.table(_COLUMNS, [_row(kept, folder) for kept in found], right=(2, 3, 4))
    say_text(table) if found else say(f"no engine lies in {folder}")


def _row(kept: Kept, folder: Path) -> tuple[str, ...]:
    name = "." if kept.folder == folder else str(kept.folder.relative_to(folder))
    error = "" if kept.deviation is None else f"{kept.deviation:.2g}"
    return name, kept.target, error, size_of(kept.size_bytes), _age(kept.age_s), kept.verdict


def _age(seconds: float) -> str:
    size, unit = next((size, unit) for least, size, unit in _AGES if seconds >= least)
    return f"{seconds // size:.0f} {unit}"


@click.command("diff")
@click.argument("left", type=click.Path(path_type=Path))
@click.argument("right", type=click.Path(path_type=Path))
@common
def diff_command(left: Path, right: Path, as_json: bool, quiet: bool) -> int:
    """Show what the engines LEFT and RIGHT differ in: model, settings, versions, passes, proof, files.

    Their manifests say it. Where these agree, the files are read, too: one that is no longer what they say ends it.
    Exit status 1 when they differ.
    """
    from moec import api
    from moec.compiler.shelf import differences
    from moec.report.artefacts import check_artefacts

    reports = {folder: api.read_report(folder) for folder in (left, right)}
    found = differences(reports[left], reports[right])
    if not found:
        for folder, report in reports.items():
            check_artefacts(report.artefacts, folder)
    if as_json:
        emit({"differences": [dataclasses.asdict(each) for each in found]})
    else:
        say("\n".join(f"{each.name}: {_said(each.left)} → {_said(each.right)}" for each in found) or "equal")
    return 1 if found else 0


def _said(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
