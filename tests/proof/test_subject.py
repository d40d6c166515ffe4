"""What may differ follows from the subject: precision, passes, what was asked for, and a text."""

from __future__ import annotations

from dataclasses import replace

import torch

from moec.execution.streaming import StreamingEngine
from moec.pipeline.pipeline import Pipeline
from moec.proof.compare import Tolerance
from moec.proof.exam import Exam
from moec.proof.subject import Subject, budget_of
from tests.moe_module import MoeModel, source_of


def test_a_budget_on_a_text_stands_in_the_place_of_one_on_outputs() -> None:
    precision, bounded, free = torch.float32, Exam("t", max_kl=0.1), Exam("t")
    default = Tolerance.of(precision, approximate=True)
    assert budget_of(precision, None, None) == budget_of(precision, None, free) == default
    assert budget_of(precision, None, bounded) is None
    assert budget_of(precision, 0.2, bounded) == budget_of(precision, 0.2, None) == Tolerance(0.2)


def test_what_may_differ() -> None:
    source = source_of(MoeModel())
    captured = source.capture()
    exact = Subject(source, captured, captured, exam=Exam("t", max_kl=0.1))
    assert exact.tolerance == exact.lowering_tolerance == Tolerance.of(torch.float32)  # a text excuses nothing exact
    assert exact.rounding is torch.float32 and replace(exact, asked=0.25).tolerance == Tolerance(0.25)
    program, _ = Pipeline.parse("quantize(bits=8, group=16, experts=16)").run(captured)
    changed = replace(exact, program=program, precision=torch.float16)
    assert changed.tolerance is None and changed.rounding is None
    assert changed.lowering_tolerance == Tolerance.of(torch.float16)
    assert replace(changed, kernel_deviation=0.3).lowering_tolerance == Tolerance(0.3)


def test_the_reference_is_the_one_that_was_chosen() -> None:
    source = source_of(MoeModel())
    captured = source.capture()
    subject = Subject(source, captured, captured)
    assert subject.open_reference().name == source.reference().name and not subject.streamed
    streamed = replace(subject, reference="streamed")
    assert isinstance(streamed.open_reference(), StreamingEngine) and streamed.streamed
    other = StreamingEngine(captured)
    assert replace(streamed, against=other).open_reference() is other
