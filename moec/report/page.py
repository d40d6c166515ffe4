"""A report as text: Markdown, and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from moec.proof.agreement import Agreement
from moec.proof.checks.check import Check
from moec.proof.checks.decided import DecidedTokens
from moec.proof.checks.experts import ExpertsReached
from moec.report.account import account_tables
from moec.report.charts import (
    UNITS,
    calibration_charts,
    damage_chart,
    equal_inside,
    layer_charts,
    load_charts,
    size_chart,
    speed_charts,
    text_load_charts,
)
from moec.report.markdown_table import markdown_table
from moec.report.overview import sizes_drawn, tiles, ways_to_make, ways_to_run
from moec.report.rendering import environment
from moec.report.report import Report
from moec.report.speed import Speed
from moec.shown import shown

_MAIN = ("outputs", "own text", "text", "experts")  # checks that everybody asks for; the others are folded up
_FORMS = {
    "engine": "The engine",
    "profiles": "Sizes that it is built for",
    "blocks": "How each block runs",
    "attention": "How attention runs",
    "linear_attention": "How linear attention runs",
    "selective_scans": "How selective scans run",
    "convolutions": "How short convolutions run",
    "packed": "Packed weights",
    "kernels": "Kernels of moec's own",
    "layers": "Layers",
}  # facts of the backend


def markdown(report: Report) -> str:
    """The report as Markdown, verdict first, then check by check."""
    lines = [f"# {report.source} → {report.target}", "", f"**{verdict(report)}**", "", report.headline(), ""]
    for section in map(section_of, report.proof.checks):
        lines += [f"## {section.title}{'' if section.ok else ': FAILED'}", "", section.text, ""]
        lines += markdown_table(("", *section.columns), [(name, *cells) for name, cells, _ in section.rows])
    if report.inside:
        lines += markdown_table(
            ("block or layer", "the same experts", "the same sets", "error"), layer_rows(report.inside)
        )
    lines += markdown_table(
        ("pass", "contract", "rewrites"), [(s["name"], s["contract"], str(s["rewrites"])) for s in report.steps]
    )
    lines += [f"- left alone: `{m['node']}`: {m['reason']} ({s['name']})" for s in report.steps for m in s["misses"]]
    lines += [f"- {note}" for note in [proof_note(report)] if note]
    for title, rows, columns in forms_of(report):
        lines += ["", f"## {title}", "", *markdown_table(tuple(columns), [tuple(row) for row in rows])]
    files = [(a.name, f"{a.size_bytes:,}", f"`{a.sha256}`") for a in report.artefacts]
    lines += ["", *markdown_table(("file", "bytes", "SHA-256"), files)]
    lines += markdown_table(("environment", ""), list(report.environment.items()))
    return shown("\n".join(lines))


@dataclass(frozen=True)
class Section:
    """One check as a page shows it: title, a sentence, and a table whose rows have a name, cells, and a verdict."""

    name: str
    title: str
    text: str
    ok: bool
    columns: tuple[str, ...]
    rows: list[tuple[str, tuple[str, ...], bool | None]]


def section_of(check: Check) -> Section:
    """A check as a page shows it."""
    figures, error = check.figures(), check.error()
    columns = tuple(dict.fromkeys(column for figure in figures for column in figure.values))
    rows = [(f.name, tuple(f.values.get(c, "") for c in columns), f.ok) for f in figures]
    return Section(
        check.name, check.title, f"{error.what}. {check.note}" if error else check.note, not error, columns, rows
    )


def html(report: Report, speeds: Sequence[Speed] = ()) -> str:
    """The report as a page without external resources, for light and dark screens and for paper; values are escaped.
    `speeds`: what was measured of the engine, see `moec.report.speed`."""
    checks = [section_of(check) for check in report.proof.checks]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            r=report,
            title=title_of(report),
            verdict=verdict(report),
            note=proof_note(report),
            tiles=tiles(report, speeds),
            main=[section for section in checks if section.name in _MAIN or not section.ok],
            others=[section for section in checks if section.name not in _MAIN and section.ok],
            account=account_tables(report.account),
            forms=facts_of(report),
            inside_on=_inside_on(report),
            inside_equal=equal_inside(report.inside) if report.inside else "",
            layers=layer_rows(report.inside) if report.inside else [],
            run=ways_to_run(report),
            make=ways_to_make(report),
            speeds=speeds,
            units=UNITS,
            **_charts(report, speeds),
        )
    )


def _charts(report: Report, speeds: Sequence[Speed]) -> dict[str, list[Markup]]:
    """What is drawn, by section."""
    quality, reached = report.quality, report.proof.find(ExpertsReached)
    inside, sizes = report.inside, sizes_drawn(report)
    on_text = quality.agreement if quality else None
    return {
        "size_charts": [size_chart(sizes)] if sizes else [],
        "layer_charts": layer_charts(inside) if inside else [],
        "load_charts": load_charts(reached.coverage.counted) if reached else [],
        "text_charts": ([damage_chart(quality.shift)] if quality and quality.shift else [])
        + (text_load_charts(on_text.blocks) if on_text else []),
        "calibration": calibration_charts(report.steps),
        "speed_charts": speed_charts(speeds),
    }


def _inside_on(report: Report) -> str:
    on_text = report.quality.agreement if report.quality else None
    return f"{on_text.tokens:,} tokens of the text" if on_text else "an input of the proof"


def title_of(report: Report) -> str:
    """The model's class where it is known, and what the user called it."""
    model = str(report.account.get("model", ""))
    name = report.source.rstrip("/").rpartition("/")[2] or report.source
    return f"{name} ({model})" if model and model != name else name


def verdict(report: Report) -> str:
    """One sentence: what was proven, or what was not."""
    proof = report.proof
    comparison = proof.comparison
    reference = "the untouched model" if comparison.reference.startswith("eager") else comparison.reference
    if failed := proof.error:
        return f"Not proven equal to {reference}: {failed.what}"
    said = "; ".join([*report.cautions, _closeness(report, reference), *([proof.limits] * bool(proof.limits))])
    said = said if proof.proven_on_target else f"{proof.verdict}: {said}"
    return said[0].upper() + said[1:]


def _closeness(report: Report, reference: str) -> str:
    """How near an engine that passed is to its reference."""
    proof = report.proof
    comparison, quality, decided = proof.comparison, proof.quality, proof.find(DecidedTokens)
    where = f" {decided.decided.where}" if decided else ""
    every = f", {proof.coverage.every}" if proof.coverage.loads else ""
    if not any(step["contract"] == "approximate" for step in report.steps):
        return f"equal to {reference}{where}{every}"
    if own := proof.own_quality:
        return (
            f"close to {reference}: KL divergence {own.kl_mean:.2g} nats a token on its own text, top-1 agreement "
            f"{own.top1:.1%}{every}"
        )
    if quality:
        return (
            f"close to {reference}: KL divergence {quality.kl_mean:.2g} nats a token, "
            f"{quality.perplexity_ratio:.4f} times its perplexity"
        )
    return f"close to {reference}: {comparison}{every}"


def proof_note(report: Report) -> str:
    """What ran the engine's files for the proof, where it was not the target's own runtime; else empty."""
    ran = str(report.facts.get("verified_by", report.target))
    if _runs_on(ran) == _runs_on(report.target):
        return ""
    built = "the target's own runtime has not run it; `moec verify` on a machine that has its GPU proves that"
    built = built if report.built else "it is not built yet, `moec build` does that"
    left = report.facts.get("unproven") or []
    return f"verified by {ran}, which ran the graph that the engine is made from: {built}" + "".join(
        f"; not proven: {what}" for what in left
    )


def _runs_on(target: str) -> tuple[str, str]:
    """Runtime and device of a target's text: an engine for a GPU that the CPU ran has not run on its hardware."""
    runtime, _, options = target.split(", ")[0].partition(":")
    device = options.split(",")[0]
    return runtime, device if device and "=" not in device else "cpu"


def forms_of(report: Report) -> list[tuple[str, list[list[str]], list[str]]]:
    """Title, rows and columns of each table that the account, the facts of the backend and of the passes give."""
    return account_tables(report.account) + facts_of(report)


def facts_of(report: Report) -> list[tuple[str, list[list[str]], list[str]]]:
    """The same without the account."""
    forms = ((title, _as_table(report.facts.get(key))) for key, title in _FORMS.items())
    found = [(title, *block_table(rows)) for title, rows in forms if rows]
    for step in report.steps:
        name = str(step["name"]).partition("(")[0]
        tables = ((key, _as_table(value)) for key, value in (step.get("facts") or {}).items())
        found += [(f"{name}: {key.replace('_', ' ')}", *block_table(rows)) for key, rows in tables if rows]
    return found


def _as_table(fact: Any) -> list[dict[str, Any]]:
    """A list of rows, or rows by name; empty for any other fact."""
    if isinstance(fact, Mapping) and all(isinstance(row, Mapping) for row in fact.values()):
        return [{"": name, **row} for name, row in fact.items()]
    return list(fact) if isinstance(fact, list | tuple) and all(isinstance(row, Mapping) for row in fact) else []


def layer_rows(inside: Agreement) -> list[tuple[str, str, str, str]]:
    """Of each block and each layer, in this order: name, the share of the same experts and of the same sets, and the
    error."""
    blocks = [(b.module, f"{100 * b.shared:.2f} %", f"{100 * b.identical:.2f} %", "") for b in inside.blocks]
    return blocks + [(layer.module, "", "", f"{layer.relative:.2e}") for layer in inside.layers]


def block_table(blocks: list[dict[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Rows and column names of a backend's facts about the blocks, whatever they are."""
    columns = list(dict.fromkeys(key for block in blocks for key in block))
    columns = [c for c in columns if c != "node" or any("layer" not in block for block in blocks)]
    return [[_cell(block.get(c, "")) for c in columns] for block in blocks], columns


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
