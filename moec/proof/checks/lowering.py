"""Check: after approximate passes, the engine equals the program that it was built from.

A budget for what passes change would hide what a backend does wrong; so the engine is held to its own program, too, by
rounding alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.errors import MoecError
from moec.execution.streaming import StreamingEngine
from moec.proof.checks.check import Figure
from moec.proof.checks.outputs import REPORT_THIS, Outputs
from moec.proof.decided_tokens import Decided
from moec.proof.evidence import compared_with
from moec.proof.subject import Subject
from moec.proof.trial import Trial


@dataclass(frozen=True)
class Lowering(Outputs):
    """The errors of each output beside the program's in PyTorch.

    Attributes:
        decided: in half precision, how many tokens were compared, where not all were.
    """

    decided: Decided | None = None

    name: ClassVar[str] = "lowering"
    title: ClassVar[str] = "Error of the lowering"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        subject = trial.subject
        if not subject.program.approximate:
            return None  # the comparison with the untouched model says it already
        rounding = subject.precision if subject.kernel_deviation is None else None
        program = StreamingEngine(subject.program, "the program that it was built from")
        evidence, comparison = compared_with(trial, program, subject.lowering_tolerance, rounding)
        return cls(comparison, decided=evidence.decided)

    def error(self) -> MoecError | None:
        few = self.decided and self.decided.error("the engine beside its own program")
        return few or super().error()

    def turned_by(self, subject: Subject) -> tuple[str, ...]:
        return ("target",) if self.measurable else ()  # how exact kernels are, and their precision

    @property
    def way_out(self) -> str:
        return REPORT_THIS

    def figures(self) -> tuple[Figure, ...]:
        if self.decided is None:
            return super().figures()
        said = Figure("tokens", {"compared": self.decided.problem or str(self.decided)}, not self.decided.problem)
        return (*super().figures(), said)

    def __str__(self) -> str:
        return f"{self.comparison} from {self.comparison.reference}"
