"""Who finds a wrong engine, and who calls a right one wrong: moec beside the checks that other converters make.

usage: python benchmarks/proof.py [--only WORD …] [--who moec …] [--jobs 2] [--no-bisect] [--no-right]
[--baseline PYTHON] [--json] [--save]

More than a hundred reported failures of MoE conversion are rebuilt as engines of small random models that are wrong in
one thing (`proof_mutants.py`), and forty engines are right (`proof_cases.py`). Everybody judges all of them
(`proof_contestants.py`); all judge the same files. A failure counts as rebuilt only if its engine differs from the
untouched model ten times as much as the right one does, on an input that is valid: `how wrong` is the largest
max |d|/std over a few texts of many sizes and the whole vocabulary.

For what moec refuses, `moec verify --bisect` is asked where it goes wrong; that is right if it names the layer in which
the failure was put. Right engines of approximate passes are counted apart: whoever compares with a tolerance for
rounding refuses them by intent.

`--baseline` is the Python of another checkout's environment. A few models are compiled in both, in turns, five times
each: the ratio is the median of this checkout's time over the other's, and the proof's share is said, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from proof_cases import RIGHT, Case, Right
from proof_contestants import PEOPLE, absent, bisection_says, judged, moec_says
from proof_mutants import MUTANTS, Mutant
from proof_report import table
from reporting import add_output, environment, put_out

from moec.errors import MoecError

CASES = {case.title: case for case in [*RIGHT, *(mutant.case for mutant in MUTANTS)]}
WRONG_BY = 10  # a mutant differs from the untouched model by so many times what the right engine does,
ROUNDING = 1e-6  # or what no engine of float32 is below
TIMED = ("qwen3_moe", "deepseek_v3", "gpt_oss", "llama4")
COMPILE = """
import json, sys, time, tempfile, moec
class Stages(moec.progress.Progress):
    def stage(self, name): self.name, self.begun = name, time.perf_counter()
    def done(self, detail=""): times[self.name] = times.get(self.name, 0) + time.perf_counter() - self.begun
for turn in range(2):  # the first imports
    times, begun = {}, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        moec.compile(sys.argv[1], out=folder + "/engine", resume=False, progress=Stages())
    whole = time.perf_counter() - begun
print(json.dumps([whole, times["verify"]]))
"""


# ---------------------------------------------------------------------- judging
def judge_case(title: str, names: list[str], right_too: bool, people: list[str], bisect: bool) -> list[dict[str, Any]]:
    """The rows of one case: its right engine, then its mutants, by name."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="moec-proof-") as folder:
        begun = time.perf_counter()
        try:
            right = Right(CASES[title], Path(folder))
        except MoecError as error:
            return [_row(f"right: {title}", "moec", True, f"{error.code}: {error.what}")]
        rows = []
        if right_too:
            said = {"moec": moec_says(right.engine)} | judged(right, right.engine, _others(people))
            rows += [_row(f"right: {title}", who, bool(why), why) for who, why in said.items() if who in people]
            rows.append(_row(f"right: {title}", "seconds", round(time.perf_counter() - begun, 1), "compile, verify"))
        own = right.distance(right.engine) if names else 0.0
        for mutant in (m for m in MUTANTS if m.name in names):
            found = judge_mutant(mutant, right, own, people, bisect)
            rows += found
            print(f"{mutant.name}: {_in_a_line(found)}", file=sys.stderr, flush=True)
        if right_too:
            print(f"right: {title}: {_in_a_line(rows[: len(people)])}", file=sys.stderr, flush=True)
        return rows


def _in_a_line(rows: list[dict[str, Any]]) -> str:
    """For whoever waits."""
    return ", ".join(f"{r['who']} {'x' if r['value'] is True else r['value'] or '-'}" for r in rows)


def judge_mutant(mutant: Mutant, right: Right, own: float, people: list[str], bisect: bool) -> list[dict[str, Any]]:
    """The rows of one wrong engine."""
    try:
        folder = mutant.change.make(right)
    except (MoecError, RuntimeError, AssertionError) as error:
        return [_row(mutant.name, "how wrong", None, f"NOT built: {error}")]
    distance = right.distance(folder)
    if not distance > WRONG_BY * max(own, ROUNDING):
        return [_row(mutant.name, "how wrong", distance, f"NOT wrong: the right engine has {own:.1e}")]
    rows = [_row(mutant.name, "how wrong", float(f"{distance:.2g}"), "max |d|/std")]
    begun, said = time.perf_counter(), {}
    if "moec" in people:
        said["moec"] = moec_says(folder)
        rows.append(_row(mutant.name, "seconds", round(time.perf_counter() - begun, 1), "verify"))
    said |= judged(right, folder, _others(people))
    rows += [_row(mutant.name, who, bool(why), why) for who, why in said.items()]
    if bisect and said.get("moec"):
        found = bisection_says(folder)
        rows.append(_row(mutant.name, "bisection", bool(found) and mutant.where in found, found or "nothing"))
    return rows


def _others(people: list[str]) -> list[str]:
    return [who for who in people if who != "moec" and who not in absent()]


def _row(case: str, who: str, value: Any, unit: str) -> dict[str, Any]:
    return {"case": case, "who": who, "value": value, "unit": unit}


def work(options: argparse.Namespace) -> list[tuple[str, list[str], bool]]:
    """Every case's title, the names of its mutants, and whether its right engine is judged; the most work first."""
    chosen = [m for m in MUTANTS if not options.only or any(word in m.name for word in options.only)]
    judged_right = {case.title for case in RIGHT} if options.right else set()
    names = {title: [m.name for m in chosen if m.case.title == title] for title in CASES}
    found = [(title, names[title], title in judged_right) for title in CASES if names[title] or title in judged_right]
    return sorted(found, key=lambda item: -len(item[1]))


# ---------------------------------------------------------------------- time
def compile_times(other: str) -> list[dict[str, Any]]:
    """Seconds of a compile here and in another checkout, and the proof's share of it here."""
    rows = []
    for name in TIMED:
        with tempfile.TemporaryDirectory(prefix="moec-proof-") as folder:
            Case(name).model_with().save_pretrained(folder)  # type: ignore[operator]  # a PreTrainedModel
            times: dict[str, list[Any]] = {sys.executable: [], other: []}
            for _ in range(5):
                for python in times:
                    run = subprocess.run([python, "-c", COMPILE, folder], capture_output=True, text=True, check=True)
                    times[python].append(json.loads(run.stdout.splitlines()[-1]))
        here, there = times[sys.executable], times[other]
        ratio = statistics.median(h[0] / t[0] for h, t in zip(here, there, strict=True))
        rows.append(_row(f"compile: {name}", "here", round(statistics.median(h[0] for h in here), 2), "s"))
        rows.append(_row(f"compile: {name}", "x baseline", round(ratio, 2), "ratio"))
        share = statistics.median(h[1] / h[0] for h in here)
        rows.append(_row(f"compile: {name}", "proof's share", round(share, 2), "of the time"))
    return rows


# ---------------------------------------------------------------------- main
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", nargs="+", default=[], help="mutants whose names hold one of these words")
    parser.add_argument("--who", nargs="+", choices=PEOPLE, default=PEOPLE)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at a time, a core each")
    parser.add_argument(
        "--no-bisect", dest="bisect", action="store_false", help="don't ask where wrong engines go wrong"
    )
    parser.add_argument("--no-right", dest="right", action="store_false", help="mutants alone")
    parser.add_argument(
        "--baseline", help="the Python of another checkout's environment, to compare compile times with"
    )
    add_output(parser, "proof")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    begun = time.perf_counter()
    judge = partial(judge_case, people=options.who, bisect=options.bisect)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        rows = [row for found in pool.map(judge, *zip(*work(options), strict=True)) for row in found]
    rows.append(_row("everything", "seconds", round(time.perf_counter() - begun), f"{options.jobs} jobs"))
    rows += [_row("everything", who, None, f"absent: {why}") for who, why in absent().items()]
    rows += compile_times(options.baseline) if options.baseline else []
    reports = {m.name: m.report for m in MUTANTS}
    report = {**environment(), "reports": reports, "rows": rows}
    put_out("proof", report, table(report), options)


if __name__ == "__main__":
    main()
