"""Functions of tests that run on the stand-in for CUDA's libraries, in a process of their own."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.cuda_stand_in.build import library
from tests.cuda_stand_in.observation import Part, read_log

ROOT = Path(__file__).parents[4]


@dataclass(frozen=True)
class Seen:
    """What a function gave, as JSON has it; what happened between its marks; what was said on stdout before."""

    result: Any
    parts: dict[str, Part]
    stdout: str


def there(function: Callable[..., Any], *arguments: str, libraries: Path | None = None) -> Seen:
    """Run a function of a module, with texts as arguments; `libraries`: other ones than all of the stand-in's. Raises
    `build.Missing` where the stand-in cannot be built."""
    name = f"{function.__module__}:{function.__name__}"
    with tempfile.TemporaryDirectory() as work:
        log = Path(work, "log")
        log.touch()
        here = {"CUDA_STAND_IN_LOG": str(log), "LD_LIBRARY_PATH": str(libraries or library()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", __name__, name, *arguments]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **here}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        *before, last = done.stdout.splitlines()
        return Seen(json.loads(last), read_log(log.read_text())[0][0], "\n".join(before))


def mark(part: str) -> None:
    """A new part of the log begins."""
    ctypes.CDLL("libcudart.so.13").stand_in_mark(part.encode())


def save_graph(folder: Path, *nodes: ir.Node) -> Path:
    """A folder with the model of some nodes; the last one's first input is `x`, its output `y`."""
    x, y = nodes[-1].inputs[0], nodes[-1].outputs[0]
    assert x is not None
    y.name, y.type = "y", x.type
    graph = ir.Graph([x], [y], nodes=nodes, opset_imports={"": 20, "com.microsoft": 1}, name="graph")
    ir.save(ir.Model(graph, ir_version=10), folder / "model.onnx")
    return folder


def array(name: str, *shape: Any) -> ir.Value:
    """An input of float32."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def constant(name: str, value: np.ndarray) -> ir.Node:
    """A node that gives an array."""
    node = ir.node("Constant", [], {"value": ir.tensor(value, name=name)})
    node.outputs[0].name = name
    return node


def main() -> None:
    module, function = sys.argv[1].split(":")
    mark("job 0")
    result = getattr(importlib.import_module(module), function)(*sys.argv[2:])
    mark("end")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
