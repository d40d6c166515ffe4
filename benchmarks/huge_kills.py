"""Kill a compile of a small DeepSeek-V3 with SIGKILL again and again, then let it end: are the bytes the same?

usage: python benchmarks/huge_kills.py [--kills 4] [--rounds 1] [--layers 2] [--seed 0] [--json]

The checkpoint has the published form, FP8 in tiles of 128 x 128. One compile with `quantize(bits=4)` and `--save-hf` is
left alone, without what is kept (`--no-resume`). Then others are begun with an empty weight cache and killed at random
points of that time, and one more takes up what they left (`--resume`). Engine and checkpoint must have the same files
with the same bytes, the manifest apart, which says when it was made. `kills.py` asks for whole engines and for nothing
left behind. Exit status 1 when anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from huge_source import small_config, write_folder
from kills import in_fork
from reporting import add_output, environment, lines_of, rows_of_one, show

from moec.files.kept import FOLDER, entries
from moec.files.regular import file_hash

TOLD = {"moec.json", "report.html", "README.md"}  # of when and where


def compile_of(place: Path, resume: bool) -> int:
    """Start a compile in a child; returns its number."""
    arguments = ["compile", str(place / "model"), "-o", str(place / "engine"), "--save-hf", str(place / "checkpoint")]
    arguments += ["--pass", "quantize(bits=4)", "--tolerance", "4", "--quiet"]
    return in_fork([*arguments, "--resume" if resume else "--no-resume"])


def ended(child: int) -> None:
    """Wait for a compile that nobody kills. Raises RuntimeError when it fails."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise RuntimeError(f"the compile ended with {status}")


def hashes(place: Path) -> dict[str, str]:
    """What the engine and the checkpoint consist of."""
    files = [path for name in ("engine", "checkpoint") for path in sorted((place / name).rglob("*"))]
    return {str(p.relative_to(place)): file_hash(p) for p in files if p.is_file() and p.name not in TOLD}


def clear(place: Path) -> None:
    """Remove what a compile published."""
    for name in ("engine", "checkpoint"):
        shutil.rmtree(place / name, ignore_errors=True)


def one_round(place: Path, takes_s: float, kills: int, chance: random.Random) -> tuple[dict[str, str], list[str]]:
    """Kill some compiles and let the next one end. Returns its hashes, and when the others were killed."""
    said = []
    for _ in range(kills):
        clear(place)
        child, after = compile_of(place, True), chance.uniform(0, takes_s)
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.append(f"{after:.1f} s: {'killed' if status < 0 else 'had ended'}, {len(entries())} entries kept")
        print(said[-1], file=sys.stderr, flush=True)
    clear(place)
    ended(compile_of(place, True))
    return hashes(place), said


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 4), ("rounds", 1), ("layers", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    add_output(parser)
    asked = parser.parse_args()
    chance, killed, wrong = random.Random(asked.seed), list[str](), list[str]()
    with tempfile.TemporaryDirectory(prefix="moec-huge-kills-") as name:
        place = Path(name)
        write_folder(small_config(asked.layers), place / "model")
        os.environ[FOLDER] = str(place / "kept")
        since = time.monotonic()
        ended(compile_of(place, False))
        takes_s, want = time.monotonic() - since, hashes(place)
        for number in range(asked.rounds):
            shutil.rmtree(place / "kept", ignore_errors=True)
            found, said = one_round(place, takes_s, asked.kills, chance)
            killed += said
            wrong += [f"round {number}: {f}" for f in sorted(want.keys() | found) if want.get(f) != found.get(f)]
    figures = {"one compile": (takes_s, "s"), "killed": (len(killed), ""), "files": (len(want), ""),
               "wrong": (len(wrong), "")}  # fmt: skip
    rows = rows_of_one(f"{asked.layers} layers", figures)
    report = {**environment(), "killed": killed, "files": want, "wrong": wrong, "rows": rows}
    show(report, "\n".join([*killed, lines_of(rows), *wrong]), asked)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
