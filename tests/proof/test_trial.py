"""What checks share is found once."""

from __future__ import annotations

from moec.execution.engine import EagerEngine
from moec.program.signature import sizes_of
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from tests.moe_module import MoeModel, source_of
from tests.proof.bounded import Bounded


def trial(bounded: bool = False) -> Trial:
    source = source_of(MoeModel())
    program = source.capture()
    return Trial(Subject(source, program, program), Bounded(program) if bounded else EagerEngine(program))


def test_a_thing_is_found_once() -> None:
    made, calls = trial(), list[int]()

    def find(_trial: Trial) -> object:
        calls.append(1)
        return object()

    assert made.once(find) is made.once(find) and len(calls) == 1 and made.reference is made.reference


def test_both_sides_have_to_take_a_size() -> None:
    made = trial(bounded=True)
    assert made.holds_sizes({"batch": 2, "sequence": 7}) and not made.holds_sizes({"batch": 2, "sequence": 11})
    subject = made.subject
    other = Trial(Subject(subject.source, subject.captured, subject.program, against=made.engine), trial().engine)
    assert not other.holds_sizes({"batch": 2, "sequence": 11})
    sample = subject.source.sample({"batch": 2, "sequence": 11})
    assert sizes_of(subject.source.inputs, sample) == {"batch": 2, "sequence": 11} and not other.holds(sample)
