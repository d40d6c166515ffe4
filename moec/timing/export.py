"""A benchmark as a file: every time as CSV or JSON, or a picture of the runs as SVG or HTML."""

from __future__ import annotations

import csv
import io
import json

from markupsafe import Markup

from moec.report.charts import UNITS, run_chart
from moec.report.drawing import WIDTH, dots, dots_height
from moec.report.rendering import TEMPLATES
from moec.shown import shown
from moec.timing.benchmark import Benchmark, Moment, with_figures


def exported(benchmark: Benchmark, form: str) -> str:
    """The content of a file; `form` is its ending: `.csv`, `.json`, `.svg` or `.html`."""
    return {".csv": as_csv, ".json": as_json, ".svg": as_svg, ".html": as_html}[form](benchmark)


def as_csv(benchmark: Benchmark) -> str:
    """A row a time: engine, round, phase, number of the token, milliseconds (RFC 4180)."""
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(Moment._fields)
    rows.writerows((*moment[:-1], f"{moment.ms:.6g}") for moment in benchmark.moments)
    return out.getvalue()


def as_json(benchmark: Benchmark) -> str:
    """Everything: machine, versions, figures, comparisons, and the single times."""
    plain = {**benchmark.to_dict(), "moments": [moment._asdict() for moment in benchmark.moments]}
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_svg(benchmark: Benchmark) -> str:
    """A row an engine and a dot a time, for each phase; lines are the medians."""
    top, parts = 20.0, []
    for phase, rows in _rows(benchmark).items():
        drawn, height = dots(rows, "ms"), dots_height(len(rows))
        place = Markup('<svg y="{}" width="{}" height="{}" ').format(f"{top + 16:.0f}", WIDTH, f"{height:.0f}")
        title = Markup('<text class="value" x="0" y="{}">{}</text>').format(f"{top:.0f}", f"time of {UNITS[phase]}")
        parts += [title, Markup(str(drawn).replace("<svg ", place, 1))]
        top += height + 48
    form = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 0 {} {}"><style>{}</style>{}</svg>\n'
    return form.format(WIDTH + 24, f"{top:.0f}", _style("look.css"), Markup("").join(parts))


def as_html(benchmark: Benchmark) -> str:
    """The pictures, the table, what of it is more than noise, and where it was measured; loads nothing."""
    charts = Markup("").join(run_chart(phase, rows) for phase, rows in _rows(benchmark).items())
    findings = Markup("").join(Markup("<li>{}").format(shown(line)) for line in benchmark.findings)
    tables = Markup("").join(
        Markup('<h3>{}</h3><pre class="wide">{}</pre>').format(
            t.title, shown("\n".join(with_figures([t.columns, *t.rows])))
        )
        for t in benchmark.tables()
    )
    page = _PAGE.format(
        style=Markup(_style("look.css") + _style("page.css")),
        head=shown(benchmark.head),
        where=shown(str(benchmark.where)),
        findings=findings,
        tables=tables,
        charts=charts,
    )
    return str(page)  # plain text: markup would escape what others put into it


_PAGE = Markup("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>moec bench: {head}</title><style>{style}</style></head>
<body><p class="kicker">moec bench</p><h1>{head}</h1>
<ul>{findings}</ul>
<div class="charts">{charts}</div>
<h2>In figures</h2>{tables}
<h2>Where</h2><p class="soft">{where}</p>
</body></html>
""")


def _rows(benchmark: Benchmark) -> dict[str, dict[str, list[float]]]:
    """Times in milliseconds by phase and engine."""
    found: dict[str, dict[str, list[float]]] = {}
    for moment in benchmark.moments:
        found.setdefault(moment.phase, {}).setdefault(moment.engine, []).append(moment.ms)
    return found


def _style(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
