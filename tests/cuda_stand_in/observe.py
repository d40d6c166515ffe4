"""Engines on the stand-in: `observe(folder)` says what one does for a prompt and for single tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cuda_stand_in.build import library
from tests.cuda_stand_in.observation import Observation, read_log, read_places

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Job:
    """One engine and what it is given.

    Attributes:
        engine: its folder.
        target: with its options.
        batch, tokens: of the prompt; without tokens a decoder is called with a cache of four and nothing new.
        steps: single tokens after the prompt.
    """

    engine: str
    target: str = "onnxruntime:cuda"
    batch: int = 1
    tokens: int = 16
    steps: int = 3


def observe(engine: Path | str, sm: int = 90, env: Mapping[str, str] | None = None, **job: object) -> Observation:
    """What one engine does; `job` holds fields of `Job`. Raises `build.Missing` where the stand-in cannot be built."""
    return observe_all([Job(str(engine), **job)], sm, env)[0]  # type: ignore[arg-type]


def observe_all(jobs: Sequence[Job], sm: int = 90, env: Mapping[str, str] | None = None) -> list[Observation]:
    """What several engines do, one after the other in one process: it takes two seconds to start.

    Args:
        jobs: the engines. After one that ends the process, a new one goes on; its `error` says so.
        sm: the compute capability that the device tells, 90 for 9.0.
        env: more of the process's environment.
    """
    with tempfile.TemporaryDirectory() as work:
        order, log, said = Path(work, "jobs.json"), Path(work, "log"), Path(work, "said")
        order.write_text(json.dumps([asdict(job) for job in jobs]))
        log.touch()
        here = {"CUDA_STAND_IN_LOG": str(log), "CUDA_STAND_IN_SM": str(sm), "OMP_NUM_THREADS": "1"}
        paths = os.pathsep.join([str(library()), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
        with said.open("wb") as errors:
            done = subprocess.run(
                [sys.executable, "-m", "tests.cuda_stand_in.drive", order],
                cwd=ROOT,
                env={**os.environ, **here, "LD_LIBRARY_PATH": paths, **(env or {})},
                stdout=errors,
                stderr=errors,
            )
        found = _read(log.read_text(), said.read_text(errors="replace"), done.returncode)
    return found + (observe_all(jobs[len(found) :], sm, env) if len(found) < len(jobs) else [])


def _read(log: str, said: str, status: int) -> list[Observation]:
    words = said.split("\n=== ")
    jobs = read_log(log)
    if not jobs:
        raise RuntimeError(f"the stand-in's process ended with {status}:\n{said[-2000:]}")
    found = [_observation(parts, words[i + 1], error) for i, (parts, error) in enumerate(jobs)]
    if status:
        found[-1].error = f"the process ended with {status}: {' '.join(words[-1].splitlines()[-2:])}"
    return found


def _observation(parts: dict, words: str, error: str) -> Observation:  # type: ignore[type-arg]
    lines = words.splitlines()
    told = [line for line in lines if "[W:onnxruntime" in line or "[E:onnxruntime" in line]
    warnings = [line.split("] ", 1)[-1].removesuffix("\x1b[m") for line in told]
    return Observation(read_places(words), parts, list(dict.fromkeys(warnings)), error)
