"""Thousands of broken models, engines and command lines: does moec refuse each in three lines, or take it?

usage: python benchmarks/fuzz.py [--attacks 2000] [--workers 2] [--kinds config weights …] [--seconds 120] [--json]

The attacks are those of `tests/mutations.py`, equal for equal numbers. Each runs the command line in a worker process;
a worker that needs longer than `--seconds` or dies is counted and replaced. Wrong are: an exit status other than 0 to
3 (70 is a bug), a traceback, an escape sequence on the terminal, foreign code that ran, a file outside of the attack's
folder, a hang, a crash. Exit status 1 when there is any.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from reporting import add_output, environment, lines_of, rows_of_one, show

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.mutations import KINDS, Bases, attempt, command, make_bases  # noqa: E402


def work(folder: Path) -> None:
    """A worker: kinds and seeds on stdin, outcomes on a stream of their own, lines of JSON."""
    import torch

    torch.set_num_threads(1)
    bases = Bases(folder / "model", folder / "sharded", folder / "engine")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for text in iter(sys.stdin.readline, ""):
        kind, seed = text.split()
        place = Path(tempfile.mkdtemp(prefix=f"{kind}-{seed}-", dir=folder / "attacks"))
        arguments = command(kind, int(seed), bases, place, deep=True)
        os.chdir(place / "here" if (place / "here").exists() else place)
        before = listing(folder)
        outcome = attempt(arguments, place / "mark")
        strange = listing(folder) - before
        os.chdir(folder)
        shutil.rmtree(place)
        wrong = outcome.wrong + [f"wrote {name}" for name in sorted(strange)]
        print(json.dumps([kind, seed, outcome.status, wrong, arguments, outcome.text[-600:]]), file=answers, flush=True)


def listing(folder: Path) -> set[str]:
    """What lies around the attacks and must not change: names, sizes and times."""
    places = [folder, *(folder / name for name in ("model", "sharded", "engine"))]
    found = [p for place in places for p in place.iterdir() if p.name != "attacks"]
    return {f"{p} {p.lstat().st_size} {p.lstat().st_mtime_ns}" for p in found if not p.is_dir()}


class Worker:
    """A process that tries attacks one after the other."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, __file__, "--work", str(folder)]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, text=True, env=environment, **streams)
        self.attack: tuple[str, int] | None = None
        self.since = 0.0

    def give(self, kind: str, seed: int) -> None:
        """Start an attack."""
        assert self.process.stdin is not None
        self.attack, self.since = (kind, seed), time.monotonic()
        self.process.stdin.write(f"{kind} {seed}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def fuzz(folder: Path, attacks: list[tuple[str, int]], workers: int, seconds: float) -> list[list[Any]]:
    """The outcomes of these attacks."""
    waiting, done = attacks[::-1], list[list[Any]]()
    crew = [Worker(folder) for _ in range(workers)]
    while waiting or any(w.attack for w in crew):
        for k, worker in enumerate(crew):
            if worker.attack is None and waiting:
                worker.give(*waiting.pop())
            late = worker.attack and time.monotonic() - worker.since > seconds
            if worker.attack and (late or worker.process.poll() is not None):
                done.append([*worker.attack, None, ["hang" if late else f"crash {worker.process.returncode}"], [], ""])
                worker.end()
                crew[k] = Worker(folder)
        streams = {w.process.stdout: w for w in crew if w.attack}
        for stream in select.select(list(streams), [], [], 0.2)[0]:
            text = stream.readline()
            if text:
                done.append(json.loads(text))
                streams[stream].attack = None
                if done[-1][3]:
                    print(done[-1], file=sys.stderr, flush=True)
                if len(done) % 100 == 0:
                    print(f"{len(done)} of {len(attacks)}", file=sys.stderr, flush=True)
    for worker in crew:
        worker.end()
    return done


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=120.0)
    add_output(parser)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work)
        return 0
    with tempfile.TemporaryDirectory(prefix="moec-fuzz-") as name:
        folder = Path(name)
        make_bases(folder)
        (folder / "attacks").mkdir()
        attacks = [(asked.kinds[k % len(asked.kinds)], asked.first + k) for k in range(asked.attacks)]
        done = fuzz(folder, attacks, asked.workers, asked.seconds)
    statuses = Counter((kind, str(status)) for kind, _, status, *_ in done)
    wrong = [row for row in done if row[3]]
    rows = rows_of_one("attacks", {"all": (len(done), ""), "wrong": (len(wrong), "")})
    for (kind, status), number in sorted(statuses.items()):
        rows += rows_of_one(kind, {f"exit {status}": (number, "")})
    lines = [lines_of(rows)]
    for kind, seed, status, why, arguments, text in wrong:
        lines.append(f"{kind} {seed}: exit {status}, {', '.join(why)}: moec {' '.join(map(repr, arguments))}\n{text!r}")
    show({**environment(), "wrong": wrong, "rows": rows}, "\n\n".join(lines), asked)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
