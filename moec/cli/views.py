"""What `moec inspect` prints for people: tables of a model, and of an engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moec.cli.terminal import TERMINAL
from moec.shown import count_of, size_of

if TYPE_CHECKING:
    from moec.report.inspection import FeedForwardBlock, Inspection
    from moec.report.report import Report
    from moec.report.size import Sizes

_BLOCK = ("layer", "kind", "experts", "routing", "widths", "activation", "parameters", "active a token")
_NUMBER = re.compile(r"\d+")


def model_view(found: Inspection) -> str:
    """The blocks of a model, then its sums."""
    rows = joined([_block_row(block) for block in found.blocks])
    parts = [TERMINAL.table(_BLOCK, rows, right=(2, 6, 7))] if rows else []
    share = f" ({found.active_parameters / found.parameters:.0%})" if found.parameters else ""
    sums = {
        "parameters": count_of(found.parameters),
        "active": f"{count_of(found.active_parameters)} a token{share}, {count_of(found.active_without_embedding)}"
        " without the input embedding",
        "compute": f"{count_of(found.flops_per_token, 'FLOP')} a token",
        "weights": size_of(found.size_bytes),
    }
    missed = [f"not matched: {miss.pass_name} at {miss.node}: {miss.reason}" for miss in found.misses]
    return "\n\n".join(filter(None, [*parts, _pairs(sums), "\n".join(missed)]))


def _block_row(block: FeedForwardBlock) -> tuple[str, ...]:
    rule, name = block.routing, str(block.activation.get("name", ""))
    top_k = f"top-{block.top_k}" if block.kind != "ffn" else ""
    groups = f", {rule['groups']} groups" if rule and rule["groups"] > 1 else ""
    routing = f"{rule['score']} {top_k} {rule['combine']}{groups}" if rule else top_k
    widths = f"{block.hidden} → {block.intermediate}" if block.hidden else ""
    activation = f"gated {name}" if block.activation.get("gated") else name
    experts = str(block.experts) if block.kind != "ffn" else "dense"
    counts = count_of(block.parameters), count_of(block.active_parameters)
    return block.module, block.kind, experts, routing, widths, activation, *counts


def joined(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows of a table, where those of equal layers in a row become one: `model.layers.0-47.mlp`. Layers are equal when
    nothing but one number of their names differs."""
    runs: list[list[tuple[str, ...]]] = []
    for row in rows:
        if runs and row[1:] == runs[-1][0][1:] and _span([*runs[-1], row]) is not None:
            runs[-1].append(row)
        else:
            runs.append([row])
    return [(_span(run) or run[0][0], *run[0][1:]) for run in runs]


def _span(rows: Sequence[tuple[str, ...]]) -> str | None:
    """The names of these rows as one; None where more than a number that counts up differs."""
    numbers = [[int(n) for n in _NUMBER.findall(row[0])] for row in rows]
    if len({_NUMBER.sub("#", row[0]) for row in rows}) > 1 or len(rows) == 1:
        return None
    moving = [k for k in range(len(numbers[0])) if len({found[k] for found in numbers}) > 1]
    if len(moving) != 1:
        return None
    counted = [found[moving[0]] for found in numbers]
    if counted != list(range(counted[0], counted[-1] + 1)):
        return None
    texts = [str(n) for n in numbers[0]]
    texts[moving[0]] += f"-{numbers[-1][moving[0]]}"
    parts = iter(texts)
    return _NUMBER.sub(lambda _: next(parts), rows[0][0])


def engine_view(report: Report, folder: str) -> str:
    """What an engine is, how its layers run, what was proven, and its files."""
    from moec.report.page import forms_of, proof_note

    head = TERMINAL.verdict(f"{folder}  {report.headline()}")
    parts = [head, _pairs(_engine_sums(report)), proof_note(report)]
    for title, rows, columns in forms_of(report):
        parts.append(f"{title}\n{TERMINAL.table(columns, _joined_table(columns, rows))}")
    checks = [(c.name, "ok" if c.ok else "FAIL", str(c).partition("\n")[0]) for c in report.proof.checks]
    parts.append(f"The proof\n{TERMINAL.table(('check', '', 'found'), checks)}")
    files = [(a.name, size_of(a.size_bytes)) for a in report.artefacts]
    parts.append(f"Files\n{TERMINAL.table(('file', 'size'), files, right=(1,))}")
    return "\n\n".join(filter(None, parts))


def _joined_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    cells = [tuple(row) for row in rows]
    return joined(cells) if columns and columns[0] == "layer" else cells


def _engine_sums(report: Report) -> dict[str, str]:
    from moec.report.artefacts import size_bytes

    holds = report.size
    sums = {"model": report.source, "target": report.target, "size": size_of(size_bytes(report.artefacts))}
    if holds:
        sums["size"] += f", {size_of(holds.stored_bytes)} before"
        sums["parameters"] = count_of(holds.parameters_after) + _before(holds)
        if holds.active_after is not None and holds.parameters_after:
            share = holds.active_after / holds.parameters_after
            sums["active"] = f"{count_of(holds.active_after)} a token ({share:.0%})"
    sums["passes"] = ", ".join(f"{step['name']} {step['rewrites']}" for step in report.steps)
    return sums


def _before(holds: Sizes) -> str:
    return f", {count_of(holds.parameters)} before" if holds.parameters != holds.parameters_after else ""


def _pairs(rows: dict[str, str]) -> str:
    return "\n".join(f"{name:<12}{text}" for name, text in rows.items() if text)
