"""Kill a compile at any moment: is there always an old or a new whole engine, and nothing left over?

usage: python benchmarks/kills.py [--random 200] [--aimed 50] [--seed 0] [--json]

An engine stands at --out, and a compile that is to replace it is killed: at a random point of its time, or aimed at
its end, within 30 ms after its manifest is written. Every other kill is SIGTERM, the others SIGKILL. Then the engine
must be whole by its manifest's hashes, with the settings of the old compile or of the new one; after SIGTERM the exit
status is 143 and no work folder is left; after SIGKILL the next one that works there sweeps it. Each compile is a fork
of this process, which has imported everything, so that the time is the compile's own. Exit status 1 when anything is
wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from reporting import add_output, environment, lines_of, rows_of_one, show

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

torch.set_num_threads(1)

from moec import api  # noqa: E402
from moec.cli import main as command_line  # noqa: E402
from moec.files.workplace import sweep  # noqa: E402
from moec.report.artefacts import check_artefacts  # noqa: E402

AIM_S = 0.03
CODE = """
import torch
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
def samples():
    return {"input": torch.randn(3, 8)}
"""
_ = api.compile  # everything that a compile imports at once is here before the first fork


def compile_in_fork(model: Path, out: Path, seed: int) -> int:
    """Start the compile of one seed in a child; returns its number."""
    return in_fork(["compile", f"{model}:net:samples", "-o", str(out), "--seed", str(seed), "--quiet"])


def in_fork(arguments: list[str]) -> int:
    """Start the command line in a child; returns its number."""
    child = os.fork()
    if child:
        return child
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    status = 70
    try:
        command_line(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        os._exit(status)


def wait_for_manifest(child: int, parent: Path) -> None:
    """Until the compile has written its manifest, or is over."""
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if any(parent.glob(".engine.moec-*/engine/moec.json")):
            return
        time.sleep(0.001)


def one_kill(
    model: Path, out: Path, number: int, chance: random.Random, aimed: bool, takes_s: float
) -> tuple[str, str]:
    """Kill one compile. Returns what was there afterwards (`old` or `new`), and what was wrong, empty if nothing."""
    by = (signal.SIGTERM, signal.SIGKILL)[number % 2]
    before = seed_of(out)
    child = compile_in_fork(model, out, number)
    if aimed:
        wait_for_manifest(child, out.parent)
        time.sleep(chance.uniform(0, AIM_S))
    else:
        time.sleep(chance.uniform(0, takes_s))
    os.kill(child, by)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    wrong = [] if status in (0, 143, -9, -15) else [f"exit {status}"]  # -15: before the handler stood
    left = [p.name for p in out.parent.iterdir() if p.name not in ("engine", "model.py", "__pycache__")]
    if left and by == signal.SIGTERM and status != -15:
        wrong.append(f"left {left}")
    sweep(out.parent)
    left = [p.name for p in out.parent.iterdir() if p.name not in ("engine", "model.py", "__pycache__")]
    wrong += [f"not swept: {left}"] if left else []
    try:
        check_artefacts(api.read_report(out).artefacts, out)
        after = seed_of(out)
        wrong += [] if after in (before, number) else [f"an engine of seed {after}"]
    except Exception as error:
        return "none", "; ".join([*wrong, f"no whole engine: {error}"])
    return "new" if after == number else "old", "; ".join(wrong)


def seed_of(out: Path) -> int:
    """Which compile made the engine."""
    return int(api.read_report(out).settings["seed"])


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=200)
    parser.add_argument("--aimed", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    asked = parser.parse_args()
    found: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="moec-kills-") as name:
        model, out = Path(name) / "model.py", Path(name) / "engine"
        model.write_text(CODE)
        os.waitpid(compile_in_fork(model, out, 10**6), 0)
        since = time.monotonic()
        os.waitpid(compile_in_fork(model, out, 10**6 + 1), 0)
        takes_s = time.monotonic() - since
        for number in range(asked.random + asked.aimed):
            aimed = number >= asked.random
            chance = random.Random(f"{asked.seed} {number}")
            there, problem = one_kill(model, out, number, chance, aimed, takes_s)
            found["aimed" if aimed else "random", there] += 1
            wrong += [f"kill {number}: {problem}"] if problem else []
            if problem:
                print(wrong[-1], file=sys.stderr, flush=True)
            if (number + 1) % 25 == 0:
                print(f"{number + 1} of {asked.random + asked.aimed}", file=sys.stderr, flush=True)
    rows = rows_of_one("kills", {"one compile": (takes_s, "s"), "wrong": (len(wrong), "")})
    for (kind, there), number in sorted(found.items()):
        rows += rows_of_one(kind, {f"the {there} engine": (number, "")})
    show({**environment(), "wrong": wrong, "rows": rows}, "\n".join([lines_of(rows), *wrong]), asked)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
