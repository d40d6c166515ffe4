"""A proof as Markdown for the page of a job: verdict, table of the checks, and plots that GitHub draws (Mermaid)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moec.layouts.facts import model_name
from moec.report.markdown_table import markdown_table
from moec.report.page import verdict
from moec.report.report import Report
from moec.shown import one_line, shown

_CACHE = "present."  # outputs of a decoder: many, of which the worst is drawn
_MOST = 4  # blocks whose experts are drawn: a page with more is not read


def job_summary(report: Report) -> str:
    """Verdict, checks, how much of each bound is used, and the load of each expert in the first blocks."""
    lines = [
        f"## {one_line(model_name(report.source))} for {one_line(report.target)}",
        "",
        f"**{verdict(report)}**",
        "",
    ]
    rows = [(c.title, "passed" if c.ok else "**FAILED**", str(c.error() or c)) for c in report.proof.checks]
    lines += [report.headline(), "", *markdown_table(("check", "", "found"), rows)]
    if used := used_bounds(report):
        lines += _plot("How much of each bound is used", "percent", used, 100.0)
    for load in report.coverage.counted[:_MOST]:
        each = [(str(expert), float(count)) for expert, count in enumerate(load.assignments)]
        lines += _plot(f"Tokens of each expert in {load.module}", "tokens", each, max(load.assignments) or 1)
    return shown("\n".join(lines)) + "\n"


def used_bounds(report: Report) -> list[tuple[str, float]]:
    """Of each bound of the proof that is a number: its name, and what was found in percent of it."""
    return [(name, 100.0 * found / allowed) for name, found, allowed in _bounds(report) if allowed]


def _bounds(report: Report) -> Iterator[tuple[str, float, float]]:
    comparison, own, text = report.comparison, report.proof.own_quality, report.quality
    caches = [o for o in comparison.outputs if o.name.startswith(_CACHE)]
    drawn = [(o.name, o) for o in comparison.outputs if o not in caches]
    drawn += [("cache", max(caches, key=comparison.used))] if caches else []
    for of, output in drawn:
        bounds = comparison.bounds(output)
        yield from ((f"{of}, {name}" if len(bounds) > 1 else of, found, bound) for name, found, bound in bounds)
    if own is not None:
        yield "KL on its own text", own.kl_mean, own.max_kl
    if text is not None and text.exam.max_kl is not None:
        yield "KL on the text", text.kl_mean, text.exam.max_kl


def _plot(title: str, unit: str, points: Sequence[tuple[str, float]], most: float) -> list[str]:
    """A bar chart as Mermaid reads it: names in quotes, numbers without exponents."""
    names = ", ".join(f'"{_name(name)}"' for name, _ in points)
    values = ", ".join(_number(value) for _, value in points)
    top = _number(max(most, *(value for _, value in points)))
    body = [f'title "{_name(title)}"', f"x-axis [{names}]", f'y-axis "{unit}" 0 --> {top}', f"bar [{values}]"]
    return ["```mermaid", "xychart-beta", *(f"    {line}" for line in body), "```", ""]


def _name(text: str) -> str:
    return one_line(text).replace('"', "'").replace("`", "'")


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") if value < 1e15 else "0"
