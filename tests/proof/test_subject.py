"""What may differ follows from the subject: precision, passes, what was asked for, and a text."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from moec.execution.streaming import StreamingEngine
from moec.pipeline.pipeline import Pipeline
from moec.program.program import AppliedPass
from moec.proof.compare import Tolerance
from moec.proof.exam import Exam
from moec.proof.subject import Subject, yardstick
from tests.moe_module import MoeModel, source_of


class Values(nn.Module):
    """The small model without its head: it says nothing of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MoeModel()
        self.inner.head = nn.Identity()

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.inner(input_ids)["logits"]}


def test_what_judges_approximate_passes() -> None:
    program, bounded, free = source_of(MoeModel()).capture(), Exam("t", max_kl=0.1), Exam("t")
    assert yardstick(program, None, None) == yardstick(program, None, free) == "own text"
    assert yardstick(program, None, bounded) == "text"
    assert yardstick(program, 0.2, bounded) == yardstick(program, 0.2, None) == "outputs"  # what was asked for
    assert yardstick(source_of(Values()).capture(), None, free) == "outputs"


def test_what_may_differ() -> None:
    source = source_of(MoeModel())
    captured = source.capture()
    exact = Subject(source, captured, captured, exam=Exam("t", max_kl=0.1))
    assert exact.tolerance == exact.lowering_tolerance == Tolerance.of(torch.float32)  # a text excuses nothing exact
    assert exact.rounding is torch.float32 and replace(exact, asked=0.25).tolerance == Tolerance(0.25)
    program, _ = Pipeline.parse("quantize(bits=8, group=16, experts=16)").run(captured)
    changed = replace(exact, program=program, precision=torch.float16)
    assert changed.tolerance is None and changed.rounding is None and changed.judged_by == "text"
    assert replace(changed, exam_decides=False).judged_by == replace(changed, exam=None).judged_by == "own text"
    assert replace(changed, asked=0.2).tolerance == Tolerance(0.2)
    assert changed.lowering_tolerance == Tolerance.of(torch.float16)
    assert replace(changed, kernel_deviation=0.3).lowering_tolerance == Tolerance(0.3)


def test_what_says_nothing_of_tokens_has_a_budget_of_noise() -> None:
    source = source_of(Values())
    captured = source.capture()
    program = captured.clone()
    program.history.append(AppliedPass("quantize", 1, "approximate", widths=(8,)))
    subject = Subject(source, captured, program)
    assert subject.judged_by == "outputs" and subject.tolerance == Tolerance(rms=0.1, why="8 bits", row=0.2)
    assert replace(subject, tighter=0.2).tolerance == Tolerance(0.2, 0.1, "8 bits", 0.2)
    assert replace(subject, asked=0.2).tolerance == Tolerance(0.2)


def test_the_reference_is_the_one_that_was_chosen() -> None:
    source = source_of(MoeModel())
    captured = source.capture()
    subject = Subject(source, captured, captured)
    assert subject.open_reference().name == source.reference().name and not subject.streamed
    streamed = replace(subject, reference="streamed")
    assert isinstance(streamed.open_reference(), StreamingEngine) and streamed.streamed
    other = StreamingEngine(captured)
    assert replace(streamed, against=other).open_reference() is other
