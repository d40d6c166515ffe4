"""What `moec probe` says of mixtures beside mixtures of shapes that it does not time, as operators alone.

usage: python benchmarks/plan_experts.py [--rounds 4] [--urgent] [--json] [--save]

The two mixtures of benchmarks/plan.py are timed in the same rounds as the probe's own, with the same rows; costs are
fitted to the probe's alone, and asked for the others with the rows that each expert got. So nothing is in it but what
is said of experts: no attention, no guess at how a batch is routed. A minute on two cores that are free.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from plan import CASES, NEAR, hurry, note
from reporting import add_output, environment, put_out, under_machine

from moec.timing.probe import Probe, Sizes
from moec.timing.probe_engines import Block
from moec.timing.probe_fit import KNOTS, ExpertTime, _fitted, _of_mixtures, quiet

ASKED = {
    Block(model.hidden, model.inner, model.experts, model.top_k): name for name, model in CASES.items() if model.experts
}
SIZES = Sizes(
    blocks=(*Sizes().blocks, *ASKED), widths=(64,), rows=(1, 4), gates=(16, 2), decoders=(),
    tokens=(1, 2, 4, 8, 16, 32, 64, 100, 512),
)  # fmt: skip


def measure(rounds: int, urgent: bool) -> dict[ExpertTime, list[float]]:
    """Seconds of calls, by what they were of."""
    with tempfile.TemporaryDirectory(prefix="moec-bench-") as work:
        probe = Probe(Path(work), SIZES)
        note("the engines are ready")
        for _ in range(rounds):
            hurry(urgent)
            probe.round()
            hurry(False)
            time.sleep(10.0 if urgent else 0.0)  # now it is the others' turn
            note("a round")
        return {key: found for key, found in probe._times.items() if isinstance(key, ExpertTime)}


def rows_of(times: dict[ExpertTime, list[float]]) -> list[dict[str, Any]]:
    """Measured over predicted, by form, mixture and tokens."""
    rows = []
    for form in dict.fromkeys(key.form for key in times):
        own = {key: _of_mixtures(key) for key in times if key.form == form and _name(key) is None}
        costs = _fitted(own, times, [], len(KNOTS))
        found: dict[tuple[str, int], list[float]] = {}
        for key in times:
            if key.form == form and (name := _name(key)):
                tokens = sum(key.loads) // (key.blocks * CASES[name].top_k)
                said = float(np.dot(_of_mixtures(key), costs))
                found.setdefault((name, tokens), []).append(quiet(times[key]) / said)
        rows += [
            {"case": f"{name}, {form}, {tokens}", "who": "measured over predicted", "unit": "ratio",
             "value": round(float(np.mean(ratios)), 4)}
            for (name, tokens), ratios in found.items()
        ]  # fmt: skip
    return rows


def _name(key: ExpertTime) -> str | None:
    """The model that a mixture is of; None for one of the probe's."""
    return next((name for block, name in ASKED.items() if (block.hidden, block.inner) == (key.hidden, key.inner)), None)


def table(report: dict[str, Any]) -> str:
    """The report for people, as Markdown."""
    values = {tuple(row["case"].split(", ")): row["value"] for row in report["rows"]}
    lines = ["| measured over predicted | within 15 % | median | least | most |", "|---|---|---|---|---|"]
    for group in ("", *dict.fromkeys(part for case in values for part in case[:2])):
        own = np.array([value for case, value in values.items() if not group or group in case])
        share = 100 * np.mean(abs(own - 1) <= NEAR)
        ends = f"{np.median(own):.2f} | {own.min():.2f} | {own.max():.2f}"
        lines.append(f"| {group or 'all'} | {share:.0f} % of {len(own)} | {ends} |")
    tokens = list(dict.fromkeys(case[2] for case in values))
    lines += ["", f"| tokens | {' | '.join(tokens)} |", "|---|" + "---|" * len(tokens)]
    for name, form in dict.fromkeys(case[:2] for case in values):
        lines.append(f"| {name}, {form} | {' | '.join(f'{values[name, form, t]:.2f}' for t in tokens)} |")
    return under_machine(report, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=4, help="through all engines")
    parser.add_argument("--urgent", action="store_true", help="on a shared machine: before others while it times")
    add_output(parser, "plan_experts")
    options = parser.parse_args()
    report = {**environment(), "rows": rows_of(measure(options.rounds, options.urgent))}
    put_out("plan_experts", report, table(report), options)


if __name__ == "__main__":
    main()
