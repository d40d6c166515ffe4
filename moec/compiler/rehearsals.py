"""A model on paper that is captured once, whatever is asked of it: which passes fire, what they make of its shape."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from moec.compiler.open import described_kind, without_config
from moec.compiler.reshaped import reshaped
from moec.errors import MoecError
from moec.frontend.source import Source
from moec.pipeline.pipeline import Pipeline
from moec.planning.shape import Shape
from moec.program.program import Program


class Rehearsals:
    """What is known of a model from its config; the program is captured when it is first needed.

    Args:
        model: a config.json, a folder that holds one, or a hub id in the local cache.
    """

    def __init__(self, model: str | Path) -> None:
        self.model = str(model)
        self._captured: dict[torch.dtype, Program] = {}
        self._failed: dict[torch.dtype, MoecError] = {}

    @cached_property
    def shape(self) -> Shape:
        """See `Source.shape`. Raises M201 for a model without a config, and what its reading says."""
        shape = described_kind(self.model).shape(self.model)
        if shape is None:
            raise without_config(self.model)
        return shape

    @cached_property
    def source(self) -> Source:
        """See `Source.described`. Raises as `shape` does, and M206 for a model that can only be counted."""
        try:
            source = described_kind(self.model).described(self.model)
        except MoecError as error:
            if error.code != "M206" or not self._is_by_formula:
                raise
            what = f"{self.shape.name} is only counted, by a formula: its config names no architecture to build"
            fix = "leave out --pass and --target, or add the model_type and architectures of a class of transformers"
            raise MoecError("M206", what, error.where, fix) from error
        if source is None:
            raise without_config(self.model)
        return source

    @property
    def _is_by_formula(self) -> bool:
        """Whether the config holds sizes alone, which `moec.planning.written` counts."""
        return any("sizes written by hand" in note and "by the formula" in note for note in self.shape.notes)

    def captured(self, dtype: torch.dtype = torch.float32) -> Program:
        """The program of the layers that hold every kind of layer; no weight is read."""
        if dtype in self._failed:
            raise self._failed[dtype]
        if dtype not in self._captured:
            try:
                self._captured[dtype] = self.source.capture(dtype)
            except MoecError as error:
                self._failed[dtype] = error  # it took as long as a capture that works
                raise
        return self._captured[dtype]

    def after(self, pipeline: str | Pipeline) -> Shape:
        """The shape that passes would make, by their own planning. Raises what `Pipeline.plan` does."""
        passes = Pipeline.parse(pipeline) if isinstance(pipeline, str) else pipeline
        if not list(passes):
            return self.shape
        program = next(iter(self._captured.values()), None) or self.captured()
        return reshaped(self.shape, program, passes.plan(program), self.source.stands_for)
