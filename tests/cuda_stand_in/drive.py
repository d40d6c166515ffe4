"""Runs engines on the stand-in, in a process of its own: `python -m tests.cuda_stand_in.drive JOBS`.

`observe` sets the library path and reads what is written. JOBS is a JSON file, a list of `observe.Job`s. The log has a
mark before each part of each job; the standard error has one before each job, among ONNX Runtime's own words on where
nodes go.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from moec.api import model_folder
from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.execution.engine import Engine
from moec.program.decoder_signature import IDS, PAST, cache_inputs
from moec.program.signature import dynamic_dimensions
from moec.targets.target import Target

RUNTIME = ctypes.CDLL("libcudart.so.13")
FIRST_IDS = 3, 64  # special tokens are below, every vocabulary's end above


def mark(part: str) -> None:
    """A new part of the log begins."""
    RUNTIME.stand_in_mark(part.encode())


def say_where_nodes_go() -> None:
    """Every session says on the standard error which provider each of its nodes got; its other settings stay."""
    session = onnxruntime.InferenceSession

    class Talking(session):  # type: ignore[misc,valid-type]
        def __init__(self, path: Any, options: Any = None, *rest: Any, **more: Any) -> None:
            options = options or onnxruntime.SessionOptions()
            options.log_severity_level, options.log_verbosity_level = 0, 1
            super().__init__(path, options, *rest, **more)

    onnxruntime.InferenceSession = Talking


def run(engine: Engine, job: dict[str, Any]) -> None:
    """Prompts and steps of a decoder; calls of what keeps no cache, and where there is no token."""
    if any(i.name == IDS for i in engine.inputs) and cache_inputs(engine.inputs) and job["tokens"]:
        write(engine, job)
    else:
        call(engine, job)


def write(engine: Any, job: dict[str, Any]) -> None:
    """A prompt and single tokens, through the engine's own runner. A prompt's first time is a part of its own: kernels
    are chosen and memory is taken then."""
    random, (batch, tokens) = np.random.default_rng(0), (job["batch"], job["tokens"])
    for part in ("first", "prompt"):
        text = engine.continuation()
        mark(part)
        text.step(random.integers(*FIRST_IDS, (batch, tokens)), np.ones((batch, tokens), np.int64))
    for step in range(job["steps"]):
        mark(f"step {step}")
        text.step(random.integers(*FIRST_IDS, (batch, 1)), np.ones((batch, tokens + 1 + step), np.int64))


def call(engine: Engine, job: dict[str, Any]) -> None:
    """The same inputs each time."""
    sizes = dict.fromkeys(dynamic_dimensions(engine.inputs), job["tokens"])
    sizes |= {"batch": job["batch"], PAST: 4}
    inputs = {i.name: torch.ones(i.resolve(sizes), dtype=i.dtype) for i in engine.inputs}  # ids, masks, pixels
    for part in ("first", "prompt"):
        mark(part)
        engine.run(inputs)


def main() -> None:
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: True  # PyTorch sees no device: it is not built for CUDA, or asks the driver
    say_where_nodes_go()
    for number, job in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        os.write(2, f"\n=== {number}\n".encode())
        mark(f"job {number}")
        try:
            engine = OnnxruntimeEngine(model_folder(Path(job["engine"])), Target.parse(job["target"]))
            run(engine, job)
        except Exception as error:  # it is the finding; the next engine is looked at all the same
            mark(f"error {' '.join(str(error).split())}")
        else:
            mark("end")
            engine.close()


main()
