"""moec: a compiler for mixture-of-experts. A PyTorch model goes in, a verified engine comes out.

The public names are loaded when they are first used, so that `import moec` and `moec --help` need not wait for torch.
Where torch is imported too, before or after, its operators `torch.ops.moec.*` are there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from moec.errors import MoecError
from moec.version import __version__
from moec.when_imported import when_imported

if TYPE_CHECKING:
    from moec.api import bench, capture, compile, inspect, load, open_source, verify
    from moec.compiler.plan import plan
    from moec.compiler.routers import routers
    from moec.execution.engine import EagerEngine, Engine
    from moec.frontend.domain import Domain
    from moec.frontend.source import Opening, Source, Tokenizer
    from moec.frontend.stored_program import load_program, save_program
    from moec.huggingface.accelerate import accelerate
    from moec.huggingface.checkpoint_format import CheckpointFormat
    from moec.huggingface.saving.save import save_hf
    from moec.layouts.facts import ModelFacts
    from moec.pipeline.passes import Context, Pass, Plan
    from moec.pipeline.pipeline import Hook, Pipeline
    from moec.program.program import Input, Program
    from moec.program.trainable import TrainableProgram
    from moec.proof.checks.check import Check, Figure
    from moec.proof.trial import Trial
    from moec.proof.verification import Verification
    from moec.report.report import Report
    from moec.targets.backend import Backend, Probe, Refusal
    from moec.targets.target import Target

# where each public name is defined; `moec.api` holds the verbs
_HOMES = {
    "accelerate": "huggingface.accelerate",
    "bench": "api",
    "capture": "api",
    "compile": "api",
    "inspect": "api",
    "load": "api",
    "load_program": "frontend.stored_program",
    "open_source": "api",
    "plan": "compiler.plan",
    "routers": "compiler.routers",
    "save_hf": "huggingface.saving.save",
    "save_program": "frontend.stored_program",
    "verify": "api",
    "Backend": "targets.backend",
    "Check": "proof.checks.check",
    "CheckpointFormat": "huggingface.checkpoint_format",
    "Context": "pipeline.passes",
    "Domain": "frontend.domain",
    "EagerEngine": "execution.engine",
    "Engine": "execution.engine",
    "Figure": "proof.checks.check",
    "Hook": "pipeline.pipeline",
    "Input": "program.program",
    "ModelFacts": "layouts.facts",
    "Opening": "frontend.source",
    "Pass": "pipeline.passes",
    "Pipeline": "pipeline.pipeline",
    "Plan": "pipeline.passes",
    "Probe": "targets.backend",
    "Program": "program.program",
    "Refusal": "targets.backend",
    "Report": "report.report",
    "Source": "frontend.source",
    "Target": "targets.target",
    "Tokenizer": "frontend.source",
    "TrainableProgram": "program.trainable",
    "Trial": "proof.trial",
    "Verification": "proof.verification",
}

__all__ = [
    "Backend",
    "Check",
    "CheckpointFormat",
    "Context",
    "Domain",
    "EagerEngine",
    "Engine",
    "Figure",
    "Hook",
    "Input",
    "ModelFacts",
    "MoecError",
    "Opening",
    "Pass",
    "Pipeline",
    "Plan",
    "Probe",
    "Program",
    "Refusal",
    "Report",
    "Source",
    "Target",
    "Tokenizer",
    "TrainableProgram",
    "Trial",
    "Verification",
    "__version__",
    "accelerate",
    "bench",
    "capture",
    "compile",
    "inspect",
    "load",
    "load_program",
    "open_source",
    "plan",
    "routers",
    "save_hf",
    "save_program",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"moec.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'moec' has no attribute {name!r}")


when_imported("torch", "moec.dialect")  # it registers the operators
