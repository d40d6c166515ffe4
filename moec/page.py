"""A report as text: Markdown, and one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moec.agreement import Agreement
    from moec.compare import OutputError
    from moec.report import Report

_FORMS = {
    "engine": "The engine", "profiles": "Sizes that it is built for", "blocks": "How each block runs", "attention": "How attention runs",
    "packed": "Packed weights", "layers": "Layers",
}  # fmt: skip  # facts of the backend
_BAR, _GAP, _HEIGHT = 14, 4, 56  # pixels: an expert's bar, the space after it, the tallest bar
_WIDTH = 720
_STEP, _AXIS, _ROOM = 28, 48, 6  # pixels of a line chart: between two points, for the axis's labels, and around the drawing


def markdown(report: Report) -> str:
    """The report as Markdown, verdict first."""
    lines = [f"# {report.source} → {report.target}", "", f"**{verdict(report)}**", "", report.headline(), ""]
    header = ("output", "max\\|d\\|/std", "allowed", "max\\|d\\|", "mean\\|d\\|", "relative", "cosine", "top-1")
    lines += _table(header, [(o.name, *figures(o, report.comparison.tolerance)) for o in report.comparison.outputs])
    if report.coverage.loads:
        loads = [(load.module or load.node, f"{load.reached}/{len(load.assignments)}", _listed(load.missed)) for load in report.coverage.loads]
        lines += _table(("block", "experts reached", "not reached"), loads)
    lines += _table(("pass", "contract", "rewrites"), [(s["name"], s["contract"], str(s["rewrites"])) for s in report.steps])
    lines += [f"- left alone: `{m['node']}`: {m['reason']} ({s['name']})" for s in report.steps for m in s["misses"]]
    lines += [f"- one text in one go and as {report.consistency}"] if report.consistency else []
    if report.quality:
        lines += ["", *_table((f"on {report.quality.exam.text}", f"{report.quality.tokens:,} tokens"), report.quality.rows())]
        inside = report.quality.agreement
        choices = [(b.module, f"{100 * b.shared:.2f} %", f"{100 * b.identical:.2f} %") for b in inside.blocks] if inside else []
        lines += _table(("block", "the same experts", "the same sets"), choices)
        lines += _table(("layer", "error"), [(layer.module, f"{layer.relative:.2e}") for layer in inside.layers] if inside else [])
    lines += [f"- cannot run at {sizes(r)}: {r['reason']}" for r in report.refused]
    lines += [f"- {note}" for note in [proof_note(report)] if note]
    for title, rows, columns in forms_of(report):
        lines += ["", f"## {title}", "", *_table(tuple(columns), [tuple(row) for row in rows])]
    lines += ["", *_table(("file", "bytes", "SHA-256"), [(a.name, f"{a.size_bytes:,}", f"`{a.sha256}`") for a in report.artefacts])]
    lines += _table(("environment", ""), list(report.environment.items()))
    return "\n".join(lines)


def html(report: Report) -> str:
    """The report as a page without external resources, for light and dark screens; values are escaped."""
    from jinja2 import Environment, StrictUndefined

    template = files("moec").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"sizes": sizes, "listed": _listed, "zip": zip, "mib": lambda n: f"{n / 2**20:.2f}"}
    inside = report.quality.agreement if report.quality else None
    charts = [(load, bars(load.assignments)) for load in report.coverage.loads]
    plots, loads = (layer_plots(inside), [(b, bars(b.load_after, max(b.load)), bars(b.load, max(b.load_after))) for b in inside.blocks]) if inside else ([], [])
    shown = {"charts": charts, "plots": plots, "loads": loads, "forms": forms_of(report), "height": _HEIGHT, "axis": _AXIS, "room": _ROOM}
    return env.from_string(template).render(r=report, verdict=verdict(report), note=proof_note(report), figures=figures, **shown)


def verdict(report: Report) -> str:
    """One sentence: what was proven, or what was not."""
    reference = "the untouched model" if report.comparison.reference.startswith("eager") else report.comparison.reference
    quality = report.quality
    if report.comparison.ok and quality and not quality.ok:
        return f"Not close enough to {reference}: {'; '.join(quality.problems) or 'its figures on the text are not numbers'}"
    if not report.ok:
        worst = report.comparison.worst
        return f"Not equal to {reference}: {worst.name} {worst.problem or f'deviates by {worst.deviation:.2g} standard deviations'}"
    if quality and any(s["contract"] == "approximate" for s in report.steps):
        return f"Close to {reference}: KL divergence {quality.kl_mean:.2g} nats a token, {quality.perplexity_ratio:.4f} times its perplexity"
    if not report.coverage.complete:
        missed = report.coverage.total - report.coverage.reached
        return f"Equal to {reference} on all inputs tried, which did not reach {missed} of {report.coverage.total} experts"
    return f"Equal to {reference}" + (", every expert reached" if report.coverage.loads else "")


def proof_note(report: Report) -> str:
    """What ran the engine's files for the proof, where it was not the target's own runtime; else empty."""
    ran = str(report.facts.get("verified_by", report.target))
    if ran.partition(":")[0] == report.target.partition(":")[0]:
        return ""
    built = "the target's own runtime has not run it; `moec verify` on a machine that has its GPU proves that"
    return f"verified by {ran}, which ran the graph that the engine is made from: {built if report.built else 'it is not built yet, `moec build` does that'}"


def forms_of(report: Report) -> list[tuple[str, list[list[str]], list[str]]]:
    """Title, rows and columns of each table that the backend's facts give."""
    return [(title, *block_table(report.facts[key])) for key, title in _FORMS.items() if report.facts.get(key)]


def figures(o: OutputError, tolerance: float) -> tuple[str, ...]:
    """An output's errors, as texts for a table row."""
    top1 = "–" if o.top1 is None else f"{100 * o.top1:.4g} %" + (f" + {100 * o.top1_undecided:.2g} % undecided" if o.top1_undecided else "")
    return (f"{o.deviation:.2e}", f"{tolerance:g}", f"{o.max_abs:.2e}", f"{o.mean_abs:.2e}", f"{o.relative:.2e}", f"{o.cosine:.7f}", top1)


def bars(assignments: tuple[int, ...], top: int = 1) -> list[dict[str, float]]:
    """Rectangles of a bar chart, an expert each: x, y, width and height in pixels, its number and its count; an empty one is 1 pixel high.

    The tallest bar stands for `top` or for the largest count, whichever is more.
    """
    step = min(_BAR + _GAP, _WIDTH / max(1, len(assignments)))
    top = max([*assignments, top])
    heights = [max(1.0, round(_HEIGHT * n / top, 2)) for n in assignments]
    return [
        {"x": round(e * step, 2), "y": _HEIGHT - h, "width": round(step * _BAR / (_BAR + _GAP), 2), "height": h, "expert": e, "count": n}
        for e, (n, h) in enumerate(zip(assignments, heights, strict=True))
    ]


def layer_plots(inside: Agreement) -> list[dict[str, Any]]:
    """Line charts over the layers: the agreement of the routers, and the error. Each has a title, axis labels, a width, and named series."""
    found, blocks = [], inside.blocks
    if blocks:
        low = min(0.9, math.floor(10 * min(b.identical for b in blocks)) / 10)
        series = {"the same experts": [b.shared for b in blocks], "the same sets": [b.identical for b in blocks]}
        found.append(_plot("Agreement of the routers", series, [b.module for b in blocks], (low, 1.0), "{:.0%}", "{:.2%}"))
    if inside.layers:
        errors = [layer.relative for layer in inside.layers]
        found.append(_plot("Error of each layer", {"‖d‖ / ‖untouched‖": errors}, [e.module for e in inside.layers], (0.0, max(errors)), "{:.2g}", "{:.2e}"))
    return found


def _plot(title: str, series: dict[str, list[float]], names: list[str], span: tuple[float, float], label: str, exact: str) -> dict[str, Any]:
    step = min(_STEP, (_WIDTH - _AXIS) / len(names))
    low, high = span
    lines = {
        of: [
            {"x": round(_AXIS + k * step, 2), "y": round(_ROOM + _HEIGHT * (high - v) / ((high - low) or 1), 2), "text": f"{name}: {exact.format(v)}"}
            for k, (name, v) in enumerate(zip(names, values, strict=True))
        ]
        for of, values in series.items()
    }
    return {"title": title, "low": label.format(low), "high": label.format(high), "lines": lines, "width": round(_AXIS + len(names) * step, 2)}


def block_table(blocks: list[dict[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Rows and column names of a backend's facts about the blocks, whatever they are."""
    columns = list(dict.fromkeys(key for block in blocks for key in block))
    return [[str(block.get(c, "")) for c in columns] for block in blocks], columns


def sizes(refused: dict[str, Any]) -> str:
    """`batch=1, sequence=1`."""
    return ", ".join(f"{k}={v}" for k, v in refused["sizes"].items())


def _listed(experts: tuple[int, ...]) -> str:
    return ", ".join(map(str, experts)) or "–"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *("| " + " | ".join(r) + " |" for r in rows), ""]
