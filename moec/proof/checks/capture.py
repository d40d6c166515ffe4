"""Check: after approximate passes, the captured program equals the untouched model.

Their budget is for what they change. What a capture got wrong would hide in it, as what a backend did wrong would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from moec.execution.streaming import StreamingEngine
from moec.program.moe_call import moe_nodes
from moec.proof.checks.outputs import REPORT_THIS, Outputs
from moec.proof.compare import Tolerance, compare
from moec.proof.decided_tokens import is_half
from moec.proof.evidence import all_tokens, captured_far_decided
from moec.proof.subject import Subject
from moec.proof.trial import Trial


@dataclass(frozen=True)
class Capture(Outputs):
    """The errors of each output of the captured program beside the untouched model's."""

    name: ClassVar[str] = "capture"
    title: ClassVar[str] = "Error of the capture"

    @classmethod
    def measure(cls, trial: Trial) -> Self | None:
        """Where the model itself is compared with, in float32 or wider: in half precision a capture rounds, and which
        experts it chooses is decided for the program after the passes only."""
        subject = trial.subject
        whole = subject.reference == "full" and subject.against is None
        if not subject.program.approximate or not whole or is_half(subject.precision):
            return None
        captured = StreamingEngine(subject.captured, "the captured program")
        tolerance = Tolerance.of(subject.precision)
        for find in (all_tokens, captured_far_decided):
            evidence = trial.once(find)
            found = compare(trial.reference, captured, evidence.whole, tolerance, evidence.compared)
            if found.ok or not evidence.far or not moe_nodes(subject.captured):
                break
        return cls(found)

    def turned_by(self, subject: Subject) -> tuple[str, ...]:
        return ("target",) if self.measurable else ()  # how exact kernels are, and their precision

    @property
    def way_out(self) -> str:
        return REPORT_THIS
