"""Programs in memory as models to compile: captured, rewritten, trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from moec.errors import MoecError
from moec.execution.engine import EagerEngine, Engine
from moec.frontend.account import Account
from moec.frontend.in_memory import IN_MEMORY, hash_of
from moec.frontend.samples import named_domain, token_domains
from moec.frontend.source import Opening, Source
from moec.layouts.facts import ModelFacts
from moec.program.program import Program
from moec.program.trainable import TrainableProgram
from moec.progress import Progress


class ProgramSource(Source):
    """A program, or the module that `Program.module(trainable=True)` made of one, with its weights as they are now.

    It is its own reference: what its passes and its training made of the model is what the engine has to equal. Cache,
    tokenizer, layout and files are those of the model that it was captured from.
    """

    def __init__(self, program: Program) -> None:
        self._program, self._home = program, program.original.source
        self.text, self.snapshot = program.source, getattr(self._home, "snapshot", None)
        self.inputs = program.inputs
        known = self._home.domains if isinstance(self._home, Source) else token_domains(program)
        self.domains = {i.name: known.get(i.name) or named_domain(i.name) for i in program.inputs}
        self.size_bytes = program.size_bytes

    @classmethod
    def opens(cls, model: Any, opening: Opening) -> bool:
        return isinstance(model, Program | TrainableProgram)

    @classmethod
    def open(cls, model: Any, opening: Opening) -> ProgramSource:
        """The source of a program."""
        return cls(model.program if isinstance(model, TrainableProgram) else model)

    @cached_property
    def hashes(self) -> dict[str, str]:  # type: ignore[override]  # all weights are read only when somebody asks
        """SHA-256 of the weights."""
        return {IN_MEMORY: hash_of((name, w.blocks()) for name, w in self._program.weights.items())}

    @property
    def places(self) -> tuple[Path, ...]:
        """Where its weights may still lie, being lazy."""
        return self._home.places if isinstance(self._home, Source) else ()

    def account(self) -> Account:
        """That it is a program, and what was done to it."""
        done = ", ".join(step.name for step in self._program.history) or "nothing"
        return Account(
            f"a program in memory, captured from {self.text}",
            inputs=tuple(i.name for i in self.inputs),
            notes=(f"what was done to it before, and is part of the model: {done}",),
        )

    def reference(self) -> Engine:
        return EagerEngine(self._program)

    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        """A copy, to which what was done before is no step any more, but the model. Raises M208 for another dtype: its
        operators name their own."""
        dtypes = {w.dtype for w in self._program.weights.values() if w.dtype.is_floating_point}
        if dtypes and dtype not in dtypes:
            own = ", ".join(sorted(str(d)[6:] for d in dtypes))
            what = f"the program computes in {own}, the target in {str(dtype)[6:]}"
            fix = "write it with moec.save_hf(program, folder) and compile that folder, or capture it in that dtype"
            raise MoecError("M208", what, self.text, fix)
        found = self._program.clone()
        found.history = [replace(step, contract="exact", widths=()) for step in found.history]
        return found

    # ------------------------------------------------------------------ what stands beside the model
    def facts(self) -> ModelFacts:
        return self._home.facts() if isinstance(self._home, Source) else super().facts()

    def write_companions(self, folder: Path) -> None:
        if isinstance(self._home, Source):
            self._home.write_companions(folder)

    def save_checkpoint(self, program: Program, folder: Path, hf_format: str, progress: Progress) -> Sequence[str]:
        if isinstance(self._home, Source):
            return self._home.save_checkpoint(program, folder, hf_format, progress)
        return super().save_checkpoint(program, folder, hf_format, progress)

    def save_gguf(self, program: Program, file: Path, floats: str) -> Sequence[str]:
        if isinstance(self._home, Source):
            return self._home.save_gguf(program, file, floats)
        return super().save_gguf(program, file, floats)
