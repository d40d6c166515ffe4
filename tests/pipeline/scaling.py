"""Passes that scale a matrix of the small model, exact and approximate by their word, and a pipeline of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from moec.pipeline.passes import Context, Contract, Pass
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.weights.lazy import scale
from tests.moe_module import MoeModel, source_of


@dataclass(frozen=True)
class ScaleHead(Pass):
    """Multiplies the head's matrix; exact by its word, whatever the factor."""

    factor: float = 1.0

    def apply(self, program: Program, context: Context) -> int:
        program.weights["head.weight"] = scale(program.weights["head.weight"], self.factor)
        return 1


@dataclass(frozen=True)
class ScaleRoughly(ScaleHead):
    """The same, and says that it is approximate."""

    contract: ClassVar[Contract] = "approximate"


def run(*passes: Pass, hooks: list) -> Program:  # type: ignore[type-arg]
    return Pipeline(passes).run(source_of(MoeModel()).capture(), hooks=hooks)[0]
