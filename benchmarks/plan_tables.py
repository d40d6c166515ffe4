"""How well times between measured kernels are known: the tables that `moec plan` reads, asked for points that they were
not given.

usage: PYTHONPATH=. python benchmarks/plan_tables.py [--device h200 …] [--format bf16 …] [--most 600] [--json] [--save]

Needs the extra `moec[plan]`; without it the reason is printed, and nothing else. Nothing is timed here: the times are
NVIDIA's measurements, in the package aiconfigurator-core. Two ways to leave out:

- `points`: a tenth of a table's points, drawn at random; each is asked of the other nine tenths.
- `sizes`: whole sizes, a fifth of them at a time, with all their batches and contexts: every product of one width, all
  points of one expert's shape, all of one number of heads. That is what a model is that nobody has measured.

`who` is the framework; `fastest` is the least time over frameworks, asked and measured, which is the lower end of what
`moec plan` prints. A row is the share of the points that are within a quarter of what was measured, and the error that
nine of ten do not surpass.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from reporting import add_output, environment, put_out, show

from moec.planning.devices import devices
from moec.planning.interpolation import Table
from moec.planning.measured import SYSTEMS, Kind, kinds, tables, why_none

PACKAGES = ("moec", "aiconfigurator-core")
FORMATS = ("bf16", "fp8", "int4", "mxfp4", "nvfp4")
QUARTER, FOLDS = 0.25, 5
# the columns of each kind's sizes that say which size it is; the others are batch and context
SHAPE: dict[Kind, list[int]] = {
    "matrices": [1], "experts": [1, 2, 3, 4], "attention": [2, 3, 4], "attention of a prompt": [2, 3, 4],
    "latent": [2], "latent of a prompt": [2], "absorbed keys": [1], "absorbed values": [1],
    "exchanges": [0],
}  # fmt: skip
Found = dict[tuple[float, ...], tuple[float, float]]  # sizes -> asked, measured


def left_out(table: Table, kind: Kind, way: str, most: int) -> Found:
    """Seconds of points that the table was not given, with what was measured."""
    generator = np.random.default_rng(0)
    if way == "points":
        folds = [generator.random(len(table.seconds)) < 0.1]
    else:
        _, group = np.unique(table.sizes[:, SHAPE[kind]], axis=0, return_inverse=True)
        fold = generator.permutation(group.max() + 1) % FOLDS
        folds = [fold[group.ravel()] == n for n in range(FOLDS)]
    found: Found = {}
    for held in folds:
        asked = np.flatnonzero(held)
        if len(asked) and len(asked) < len(held):
            asked = np.sort(generator.permutation(asked)[: most // len(folds)])
            times = table.without(held).at(table.sizes[asked])
            for place, seconds in zip(asked, times, strict=True):
                found[tuple(table.sizes[place])] = (float(seconds), float(table.seconds[place]))
    return found


def errors(found: Found) -> np.ndarray[Any, Any]:
    """Relative errors."""
    return np.array([abs(asked / measured - 1) for asked, measured in found.values()])


def fastest(every: list[Found]) -> Found:
    """Of the points that at least two frameworks were asked for, the least of both times."""
    both: dict[tuple[float, ...], list[tuple[float, float]]] = {}
    for found in every:
        for sizes, pair in found.items():
            both.setdefault(sizes, []).append(pair)
    return {s: (min(a for a, _ in p), min(m for _, m in p)) for s, p in both.items() if len(p) > 1}


def rows(device: str, format: str, way: str, most: int) -> Iterator[dict[str, Any]]:
    """A row for each framework and kind, and one for the fastest."""
    for kind in kinds():
        every = []
        for framework in tables(device, format):
            table = framework.table(kind)
            if table is None or len(table.seconds) < 50 or (format != "bf16" and kind not in ("matrices", "experts")):
                continue  # attention is measured in bf16 alone
            found = left_out(table, kind, way, most)
            if found:
                every.append(found)
                yield row(device, format, kind, way, table.origin, found)
        if len(every) > 1 and (together := fastest(every)):
            yield row(device, format, kind, way, "fastest", together)


def row(device: str, format: str, kind: str, way: str, who: str, found: Found) -> dict[str, Any]:
    """One row: a case, who, and the share in percent."""
    wrong = errors(found)
    return {
        "case": f"{device}, {format}, {kind}, {way} left out", "who": who, "unit": "% within 25 %",
        "value": round(100 * float(np.mean(wrong <= QUARTER)), 1), "points": len(wrong),
        "nine_of_ten_within": round(float(np.quantile(wrong, 0.9)), 3), "kind": kind, "way": way,
    }  # fmt: skip


def summary(every: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over all devices and formats, each point counting once: by kind, and all together."""
    found = []
    for way in ("points", "sizes"):
        for who, own in (("each framework", False), ("fastest", True)):
            for kind in (*kinds(), "all kinds"):
                some = [
                    r for r in every
                    if r["way"] == way and kind in (r["kind"], "all kinds") and (r["who"] == "fastest") == own
                ]  # fmt: skip
                points = sum(r["points"] for r in some)
                if points:
                    share = sum(r["value"] * r["points"] for r in some) / points
                    nine = sum(r["nine_of_ten_within"] * r["points"] for r in some) / points
                    found.append(
                        {"case": f"all, {kind}, {way} left out", "who": who, "value": round(share, 1),
                         "unit": "% within 25 %", "points": points, "nine_of_ten_within": round(nine, 3)}
                    )  # fmt: skip
    return found


def text(every: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| case | who | points | % within 25 % | nine of ten within |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['case']} | {r['who']} | {r['points']} | {r['value']} | {r['nine_of_ten_within']:.0%} |" for r in every
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--format", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--most", type=int, default=600, help="points that a table is asked for")
    add_output(parser, "plan_tables")
    options = parser.parse_args()
    why = why_none(devices()[options.device[0]])
    if why:
        show({**environment(PACKAGES), "skipped": why, "rows": []}, f"skipped: {why}", options)
        return
    every = [
        row
        for device in options.device
        for format in options.format
        for way in ("points", "sizes")
        for row in rows(device, format, way, options.most)
    ]
    report = [*summary(every), *every]
    put_out("plan_tables", {**environment(PACKAGES), "rows": report}, text(report), options)


if __name__ == "__main__":
    main()
