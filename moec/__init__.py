"""moec: a compiler for mixture-of-experts. A PyTorch model goes in, a verified engine comes out.

The public names are loaded when they are first used, so that `import moec` and `moec --help` need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moec.errors import MoecError
from moec.version import __version__

if TYPE_CHECKING:
    from moec.api import bench, capture, compile, inspect, load, open_source, verify
    from moec.execution.engine import Engine
    from moec.frontend.stored_program import load_program, save_program
    from moec.huggingface.accelerate import accelerate
    from moec.pipeline.passes import Pass
    from moec.pipeline.pipeline import Pipeline
    from moec.program.program import Program
    from moec.report.report import Report
    from moec.targets.target import Target

_HOMES = {
    "accelerate": "huggingface.accelerate",
    "bench": "api",
    "capture": "api",
    "compile": "api",
    "inspect": "api",
    "load": "api",
    "open_source": "api",
    "verify": "api",
    "load_program": "frontend.stored_program",
    "save_program": "frontend.stored_program",
    "Engine": "execution.engine",
    "Pass": "pipeline.passes",
    "Pipeline": "pipeline.pipeline",
    "Program": "program.program",
    "Report": "report.report",
    "Target": "targets.target",
}

__all__ = [
    "Engine",
    "MoecError",
    "Pass",
    "Pipeline",
    "Program",
    "Report",
    "Target",
    "__version__",
    "accelerate",
    "bench",
    "capture",
    "compile",
    "inspect",
    "load",
    "load_program",
    "open_source",
    "save_program",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"moec.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'moec' has no attribute {name!r}")
