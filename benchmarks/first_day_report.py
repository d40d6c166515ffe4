"""The first day's report for people, as Markdown: how each stage ended, and its figures; short enough for a console."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
SHOWN = 24  # rows of a stage's list


def table(report: dict[str, Any]) -> str:
    """The whole report. report: as `first_day.report` makes it."""
    machine, versions = report["machine"].get("gpu", "?"), report["versions"]
    head = f"{machine}; " + ", ".join(f"{name} {value}" for name, value in versions.items())
    stages = ["| stage | state | cases | numbers in bounds | aims met | |", "|---|---|---|---|---|---|"]
    for name, stage in report["stages"].items():
        rows = [r for r in report["rows"] if r["stage"] == name]
        stages.append(
            f"| {name} | {stage['state']} | {stage['cases']} | {share(rows, 'ok')} | {share(rows, 'met')} "
            f"| {stage['reason']} |"
        )
    parts = [anchors(of(report, "anchors")), missed(report["rows"])]
    parts += [figures(name, of(report, name)) for name in ("decoder", "runtime", "engines", "accelerate")]
    return "\n\n".join([head, "\n".join(stages), *filter(None, parts)])


def of(report: dict[str, Any], stage: str) -> list[Row]:
    return [row for row in report["rows"] if row["stage"] == stage]


def share(rows: list[Row], key: str) -> str:
    """`3 of 4`: how many of the rows that have such an entry say yes."""
    have = [row[key] for row in rows if key in row]
    return f"{sum(have)} of {len(have)}" if have else "–"


def anchors(rows: list[Row]) -> str:
    """One line a cell: microseconds of all, and how ours stands to them."""
    found = {(r["case"], r["who"], r["unit"]): r["value"] for r in rows}
    cases = list(dict.fromkeys(r["case"] for r in rows))
    columns = [
        ("moec, us", "moec", "us", "{:.1f}"),
        ("torch", "torch._grouped_mm", "us", "{:.1f}"),
        ("transformers", "transformers grouped_mm", "us", "{:.1f}"),
        ("best peer / moec", "moec against the best peer", "times as fast", "{:.2f}"),
        ("16 bits / 4", "4 bits against 16", "times as fast", "{:.2f}"),
        ("bandwidth", "moec", "of 4.8 TB/s", "{:.0%}"),
        ("FLOPs", "moec", "of 989 TFLOP/s", "{:.0%}"),
    ]
    lines = ["| " + " | ".join(["experts", *(c[0] for c in columns)]) + " |", "|---" * (len(columns) + 1) + "|"]
    for case in cases:
        cells = [
            form.format(found[case, who, unit]) if (case, who, unit) in found else "–" for _, who, unit, form in columns
        ]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if cases else ""


def missed(rows: list[Row]) -> str:
    """The wrong numbers, and the aims that were not met, the furthest first."""
    wrong = [f"- WRONG: {line(row)}, at most {row['bound']:.3g}" for row in rows if row.get("ok") is False]
    late = sorted((r for r in rows if r.get("met") is False), key=lambda r: r["value"] / r["aim"] if r["aim"] else -1)
    told = [f"- {line(row)}, aim {row['aim']:.3g}" for row in late]
    more = [f"- and {len(told) - SHOWN} aims more"] if len(told) > SHOWN else []
    return "\n".join([*wrong, *told[:SHOWN], *more])


def figures(stage: str, rows: list[Row]) -> str:
    """A stage's rows as a list; numbers in bounds are left out where there are many."""
    shown = [row for row in rows if "ok" not in row] or rows[:SHOWN]
    more = [f"- and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    return "\n".join([f"{stage}:", *(f"- {line(row)}" for row in shown[:SHOWN]), *more]) if rows else ""


def line(row: Row) -> str:
    reason = f" ({row['reason']})" if "reason" in row else ""
    foretold = f", foretold {row['foretold']}" if "foretold" in row else ""
    return f"{row['case']}: {row['who']}: {row['value']:.4g} {row['unit']}{foretold}{reason}"
