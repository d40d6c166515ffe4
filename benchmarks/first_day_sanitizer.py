"""First day, stage `sanitizer`: compute-sanitizer over the small cases of `kernels`.

`memcheck` finds loads and stores outside of what was allocated, `racecheck` programs of one block that don't wait for
each other in shared memory. PyTorch's caching allocator is off, so that each tensor is an allocation of its own. The
cases are those that the interpreter runs here too; under the checker numbers count as well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from first_day_rows import Absent, Rows, read

TOOLS = ("memcheck", "racecheck")
PLACES = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")
SUMMARY = re.compile(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+) (?:error|hazard)")


def program(places: tuple[str, ...] = PLACES) -> str:
    """The checker. Raises Absent."""
    found = next((p for p in map(shutil.which, places) if p), None)
    if found is None:
        raise Absent("compute-sanitizer is not on this machine")
    return found


def errors_of(log: str) -> int:
    """How many errors or hazards a log counts. Raises ValueError where it has no summary: then nothing was checked."""
    found = SUMMARY.search(log)
    if found is None:
        raise ValueError(f"no summary in: {log[-400:]}")
    return int(found.group(1))


def first_error(log: str) -> str:
    """The first thing that a log complains of, and where: the lines that the checker marks, up to three."""
    marked = [line.strip("= \t") for line in log.splitlines() if line.startswith("=========")]
    told = [line for line in marked if line and not re.match(r"COMPUTE-SANITIZER|.*SUMMARY", line)]
    return "; ".join(told[:3])


def sanitizer(rows: Rows, device: str, places: tuple[str, ...] = PLACES, seconds: float = 80) -> None:
    """The stage: each tool runs the stage `kernels` in its small form, in a process of its own."""
    checker = program(places)
    for tool in rows.todo(TOOLS):
        with tempfile.TemporaryDirectory() as work:
            stage = [str(Path(__file__).with_name("first_day.py")), "--stage", "kernels", "--small", "--results", work]
            command = [checker, "--tool", tool, "--error-exitcode", "9", sys.executable, *stage]
            command += ["--dry"] if device == "cpu" else []
            each = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=each)
            log, found = done.stdout + done.stderr, read(Path(work, "kernels.json"))
        errors = errors_of(log)
        if errors:
            rows.notes[tool] = first_error(log)
        rows.check(f"{tool} {rows.notes.get(tool, '')}".strip(), errors, "errors", 0.0)
        rows.figure("cases that ran", len(found.get("cases", ())), "cases")
        rows.check("kernels under it", float(found.get("state") != "done"), "failures", 0.0)
