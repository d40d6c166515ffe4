"""Check: every constant of the engine is the model's, bit for bit.

No input reaches every row of a vocabulary, every position of a table or both sides of every clamp, so outputs cannot
show that these are right. Their values can.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.literals import missing_literals
from moec.proof.trial import Trial
from moec.proof.values import (
    Finding,
    compare_file,
    compare_lowering,
    compare_passes,
    compare_source,
    same_names,
)

SHOWN = 20  # differences that are kept at most: the first says what is wrong


@dataclass(frozen=True)
class Values(Check):
    """The constants of the engine's file beside the program's, and the program's weights beside the untouched model's.

    Attributes:
        file: what was read: the engine's file, or the graph that an opaque one is built from.
        constants, size_bytes: of the file that were compared.
        weights: of the program that were compared with the untouched model's tensors; 0 where it is not in memory.
        differences: what is not equal, the first of them.
    """

    file: str
    constants: int
    size_bytes: int
    weights: int
    differences: tuple[Finding, ...] = ()

    name: ClassVar[str] = "values"
    title: ClassVar[str] = "Constants by value"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        subject = trial.subject
        file = subject.file
        if file is None or subject.against is not None:
            return None
        held, due = file.held(), file.due(subject.program)
        if held is None or due is None:
            return None
        tensors = {} if subject.streamed else trial.reference.tensors()
        findings = [*islice(compare_file(held, due), SHOWN), *islice(compare_lowering(due, subject.program), SHOWN)]
        findings += islice(compare_source(subject.captured, tensors), SHOWN)
        graphs = [subject.program]
        if not subject.program.approximate:
            findings += islice(compare_passes(subject.captured, subject.program), SHOWN)
            graphs.append(subject.captured)
        lost = dict(pair for graph in graphs for pair in missing_literals(graph, held))
        findings += [Finding(node, f"its number {value:g} is not in the engine") for node, value in lost.items()]
        numbers = [c for c in held.values() if c.weight is not None]
        return cls(
            file.backend.constants_file,
            len(numbers),
            sum(c.weight.size_bytes for c in numbers if c.weight is not None),
            len(same_names(subject.captured, tensors)),
            tuple(findings[:SHOWN]),
        )

    def error(self) -> MoecError | None:
        if not self.differences:
            return None
        first = self.differences[0]
        more = f"; {len(self.differences) - 1} more differ" if len(self.differences) > 1 else ""
        what = f"a constant of the engine is not the model's: {first.what}{more}"
        return MoecError("M110", what, f"{first.name} in {self.file}", "compile the engine again from its model")

    @property
    def note(self) -> str:
        beside = f" {self.weights:,} weights beside the untouched model's own tensors." if self.weights else ""
        return (
            f"{self.constants:,} constants of {self.file}, {self.size_bytes / 2**20:.1f} MiB, beside what the program "
            f"makes them, bit for bit.{beside}"
        )

    def figures(self) -> tuple[Figure, ...]:
        if not self.differences:
            return (Figure("all constants", {"difference": "none"}),)
        return tuple(Figure(found.name, {"difference": found.what}, False) for found in self.differences)

    def __str__(self) -> str:
        if self.differences:
            return f"{len(self.differences)} constants differ: {self.differences[0].name}: {self.differences[0].what}"
        source = f", {self.weights:,} weights equal to the untouched model's" if self.weights else ""
        return f"{self.constants:,} constants equal by value{source}"
