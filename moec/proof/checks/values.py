"""Check: every constant of the engine is the model's, bit for bit.

No input reaches every row of a vocabulary, every position of a table or both sides of every clamp, so outputs cannot
show that these are right. Their values can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Self

from torch import Tensor

from moec.errors import MoecError
from moec.proof.checks.check import Check, Figure
from moec.proof.literals import missing_literals
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.proof.values import (
    Finding,
    compare_file,
    compare_lowering,
    compare_passes,
    compare_source,
    roots_of,
    same_names,
)
from moec.shown import size_of
from moec.targets.backend import Constant
from moec.targets.engine_file import EngineFile

SHOWN = 20  # differences that are kept at most: the first says what is wrong


@dataclass(frozen=True)
class Values(Check):
    """The constants of the engine's file beside the program's, and the program's weights beside the untouched model's.

    Attributes:
        file: what was read: the engine's file, or the graph that an opaque one is built from.
        constants, size_bytes: of the file that were compared.
        weights: of the program that were compared with the untouched model's tensors; 0 where it is not in memory.
        differences: what is not equal, the first of them.
        elsewhere: what was another one when passes fitted numbers to a text, see `Subject.fitted_elsewhere`; empty
            where what differs first is the model's own, which no pass made.
    """

    file: str
    constants: int
    size_bytes: int
    weights: int
    differences: tuple[Finding, ...] = ()
    elsewhere: str = ""

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
        findings = [
            *islice(compare_file(held, due), SHOWN),
            *islice(compare_lowering(due, subject.program), SHOWN),
            *_source(trial, tensors),
            *islice(_passes(subject, file, held), SHOWN),
        ]
        fitted = not findings or _from_passes(findings[0].name, due, subject)
        numbers = [c for c in held.values() if c.weight is not None]
        return cls(
            file.backend.constants_file,
            len(numbers),
            sum(c.weight.size_bytes for c in numbers if c.weight is not None),
            len(same_names(subject.captured, tensors)),
            tuple(findings[:SHOWN]),
            subject.fitted_elsewhere if fitted else "",
        )

    def error(self) -> MoecError | None:
        if not self.differences:
            return None
        first = self.differences[0]
        more = f"; {len(self.differences) - 1} more differ" if len(self.differences) > 1 else ""
        what = f"a constant of the engine is not the model's: {first.what}{more}"
        fix = "compile the engine again from its model"
        if self.elsewhere:  # other numbers are to be expected then
            what = (
                f"a constant of the engine is not what it is made here: {first.what}{more}; {self.elsewhere}, or it was"
            )
            what += " changed since"
            fix = "verify it where it was compiled: what differs there too was changed; or compile it again here"
        return MoecError("M110", what, f"{first.name} in {self.file}", fix)

    @property
    def note(self) -> str:
        beside = f" {self.weights:,} weights beside the untouched model's own tensors." if self.weights else ""
        return (
            f"{self.constants:,} constants of {self.file}, {size_of(self.size_bytes)}, beside what the program "
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


def _from_passes(name: str, due: Mapping[str, Constant], subject: Subject) -> bool:
    """Whether passes may have made a constant, or what it is lowered from; of one that nothing is known of, too."""
    captured, program = subject.captured.weights, subject.program.weights
    weight = due[name].weight if name in due else program.get(name, captured.get(name))
    if weight is None:
        return True
    own, untouched = {id(w): n for n, w in program.items()}, set(map(id, captured.values()))
    made, _ = roots_of(weight, own)
    return any(id(root) not in untouched for root in made)


def _source(trial: Trial, tensors: Mapping[str, Tensor]) -> list[Finding]:
    """What differs from the untouched model's tensors: of one that changes its tables while it runs, from a fresh
    one's."""
    captured = trial.subject.captured
    found = list(islice(compare_source(captured, tensors), SHOWN))
    return found and list(islice(compare_source(captured, trial.subject.open_reference().tensors()), SHOWN))


def _passes(subject: Subject, file: EngineFile, held: Mapping[str, Constant]) -> Iterator[Finding]:
    """What exact passes must leave as it is, and what is not as in another model that the engine is to equal. Where
    the user allows a difference, another model may have other weights."""
    another = subject.captured.source != subject.program.source
    exact = not subject.program.approximate and not (another and subject.asked is not None)
    if exact:
        yield from compare_passes(subject.captured, subject.program)
    if exact and subject.twin is not None:
        twin = file.due(subject.twin) or {}
        yield from compare_file(held, twin) if held.keys() == twin.keys() else ()
    for graph in (subject.captured, subject.program) if exact else (subject.program,):
        for node, value in missing_literals(graph, held):
            yield Finding(node, f"its number {value:g} is not in the engine")
