"""What every benchmark prints and keeps: the machine, the versions, and a row for each figure.

With `--json` stdout is `{"machine": …, "versions": …, "rows": [{"case", "who", "value", "unit"}]}`, else the table for
people. With `--save` both are kept, as `results/NAME.json` and `results/NAME.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moec.execution.machine import cores

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "transformers", "onnxruntime-gpu", "onnx", "onnxscript", "moec")
Row = dict[str, Any]


def environment(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """The machine that this runs on, how busy it is, and the versions of what is measured."""
    about = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in about if line.startswith("model name")), platform.processor())
    return {
        "machine": {"cpu": model, "cores": cores(), "system": platform.platform(), "load": os.getloadavg()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def rows_of_one(case: str, figures: dict[str, tuple[Any, str]]) -> list[Row]:
    """Rows of one case of moec's: `figures` are values and units by name."""
    return [
        {"case": f"{case}: {name}", "who": "moec", "value": value, "unit": unit}
        for name, (value, unit) in figures.items()
    ]


def lines_of(rows: Iterable[Row]) -> str:
    """Rows as lines of text, sizes in MiB."""
    lines = []
    for row in rows:
        value, unit = row["value"], row["unit"]
        if unit == "B":
            value, unit = value / 2**20, "MiB"
        lines.append(f"{row['case']:<60} {f'{value:.5g}' if isinstance(value, float) else value} {unit}".rstrip())
    return "\n".join(lines)


def add_output(parser: argparse.ArgumentParser, kept: str = "") -> None:
    """The options `--json` and, where results are `kept` under a name, `--save`."""
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    if kept:
        parser.add_argument("--save", action="store_true", help=f"write {kept}.json and .md into {RESULTS.name}/")


def keep(name: str, report: dict[str, Any], table: str) -> None:
    """Write a report and its table into the results."""
    RESULTS.joinpath(f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    RESULTS.joinpath(f"{name}.md").write_text(table.rstrip() + "\n", encoding="utf-8")


def show(report: dict[str, Any], table: str, options: argparse.Namespace) -> None:
    """Print a report, as JSON or as its table."""
    print(json.dumps(report) if options.json else table, flush=True)


def put_out(name: str, report: dict[str, Any], table: str, options: argparse.Namespace) -> None:
    """Keep a report where that was asked for; print it."""
    if options.save:
        keep(name, report, table)
    show(report, table, options)


def among_kept(name: str, rows: list[Row], same: Callable[[Row], Any] = lambda row: row["case"]) -> list[Row]:
    """The rows that are kept under a name, with these in the place of those of the same cases."""
    path, own = RESULTS / f"{name}.json", {same(row) for row in rows}
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    at = next((k for k, row in enumerate(before) if same(row) in own), len(before))
    older, later = ([row for row in part if same(row) not in own] for part in (before[:at], before[at:]))
    return [*older, *rows, *later]


def under_machine(report: dict[str, Any], lines: list[str]) -> str:
    """A table's lines, with the machine and the versions above them."""
    machine, versions = report["machine"], ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    clock = [machine["clock"]] if "clock" in machine else []
    about = ", ".join([machine["cpu"], f"{machine['cores']} cores", *clock, f"load {machine['load'][0]:.1f}"])
    return "\n".join([f"{about}; {versions}", "", *lines]).rstrip()
