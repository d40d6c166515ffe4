"""A model that passes make of others (`merge`): what a compile begins with, and what its engine is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from moec.execution.engine import Engine
from moec.execution.streaming import StreamingEngine
from moec.frontend.account import Account
from moec.frontend.source import Source
from moec.layouts.facts import ModelFacts
from moec.pipeline.calibration import Calibration
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline, StepReport
from moec.program.program import Program
from moec.progress import Progress


def making(pipeline: Pipeline) -> tuple[Pipeline, Pipeline]:
    """The passes that make a new model, which come first, and those that follow."""
    count = 0
    while count < len(pipeline.passes) and pipeline.passes[count].contract_of() == "new model":
        count += 1
    return replace(pipeline, passes=pipeline.passes[:count]), replace(pipeline, passes=pipeline.passes[count:])


def as_new_model(
    source: Source, pipeline: Pipeline, calibration: Calibration | None, seed: int
) -> tuple[Source, Pipeline]:
    """The source that a compile with these passes begins with, and the passes that are left."""
    first, following = making(pipeline)
    return (NewModel(source, first, calibration, seed) if first.passes else source), following


class NewModel(Source):
    """What passes make of a model and others.

    Everything beside the weights, files and tokenizer included, is the base's.

    Args:
        base: the source that the user named. pipeline: the passes, each of which makes a new model.
        calibration: their text. seed: for what is random.

    Attributes:
        steps: what the passes did, once it is captured.
    """

    def __init__(self, base: Source, pipeline: Pipeline, calibration: Calibration | None, seed: int) -> None:
        self._base, self._pipeline = base, pipeline
        self._calibration, self._seed = calibration, seed
        self._others = [base.alike(model) for item in pipeline for model in item.other_models()]
        self._made: dict[str, tuple[Program, list[StepReport]]] = {}
        self.text, self.snapshot, self.steps = base.text, base.snapshot, list[StepReport]()
        self.scale, self.stands_for = base.scale, base.stands_for

    inputs = property(lambda self: self._base.inputs)  # type: ignore[assignment]
    domains = property(lambda self: self._base.domains)  # type: ignore[assignment]
    hashes = property(lambda self: self._base.hashes)  # type: ignore[assignment]

    @property
    def recalled_from(self) -> str:
        """The base's, which is the only one that a compile captures at once."""
        return self._base.recalled_from

    @recalled_from.setter
    def recalled_from(self, key: str) -> None:
        self._base.recalled_from = key

    @cached_property
    def models_hash(self) -> str:  # type: ignore[override]  # the files are read only when somebody asks
        """SHA-256 over the files of the other models."""
        lines = "".join(
            f"{digest}  {number}/{name}\n"
            for number, other in enumerate(self._others)
            for name, digest in sorted(other.hashes.items())
        )
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        return self._base.size_bytes + sum(other.size_bytes for other in self._others)

    @property
    def loaded_bytes(self) -> int:
        return self._base.loaded_bytes + sum(other.loaded_bytes for other in self._others)

    @property
    def places(self) -> tuple[Path, ...]:
        return tuple(path for source in (self._base, *self._others) for path in source.places)

    def require_unchanged(self) -> None:
        for source in (self._base, *self._others):
            source.require_unchanged()

    def reference(self) -> Engine:
        program = self.capture(torch.float32)
        return self._base.reference_of(program) or StreamingEngine(program, "the new model's program")

    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        base = self._base.capture(dtype)
        key = base.digest()
        if key not in self._made:
            self._made[key] = self._pipeline.run(base, Context(self._seed, calibration=self._calibration))
        program, self.steps = self._made[key]
        return program.clone()

    def account(self) -> Account:
        found = self._base.account()
        return replace(found, notes=(*found.notes, f"a new model is made of it and others: {self._pipeline}"))

    # ------------------------------------------------------------------ what stands beside the model
    def facts(self) -> ModelFacts:
        return self._base.facts()

    def write_companions(self, folder: Path) -> None:
        self._base.write_companions(folder)

    def save_checkpoint(self, program: Program, folder: Path, hf_format: str, progress: Progress) -> Sequence[str]:
        return self._base.save_checkpoint(program, folder, hf_format, progress)

    def save_gguf(self, program: Program, file: Path, floats: str) -> Sequence[str]:
        return self._base.save_gguf(program, file, floats)

    def sample(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
        return self._base.sample(sizes, seed)
