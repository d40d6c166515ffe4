"""Bounds that a manifest records fail a proof that needs them, and are only shown to one that doesn't."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.proof.checks.bounds import RecordedBounds
from moec.proof.recorded_bound import RecordedBound
from moec.proof.subject import Subject
from moec.proof.verification import prove
from tests.moe_module import MoeModel, source_of

LOOSER = (RecordedBound("tolerance", "50", "0.001", "--tolerance 50"),)


class Twice(EagerEngine):
    """Outputs twice as large."""

    def run(self, inputs) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        return {name: 2 * value for name, value in super().run(inputs).items()}


@pytest.fixture(scope="module")
def subject() -> Subject:
    source = source_of(MoeModel())
    captured = source.capture()
    return Subject(source, captured, captured, looser=LOOSER)


def test_a_right_engine_needs_none(subject: Subject) -> None:
    proof = prove(subject, EagerEngine(subject.program))
    found = proof.find(RecordedBounds)
    assert proof.ok and found is not None and found.figures()[0].ok is None and "not used: tolerance 50" in str(proof)
    assert prove(replace(subject, looser=()), EagerEngine(subject.program)).find(RecordedBounds) is None


def test_a_wrong_one_says_how_they_are_accepted(subject: Subject) -> None:
    proof = prove(subject, Twice(subject.program))
    with pytest.raises(MoecError, match="differs from") as caught:
        proof.require()
    assert caught.value.code == "M111" and "moec verify ENGINE --tolerance 50" in caught.value.fix
    assert not proof.ok and proof.checks[0].figures()[0].ok is False
    assert prove(replace(subject, looser=(), asked=50.0), Twice(subject.program)).ok  # what it says
    short = prove(subject, Twice(subject.program), until_failure=True)
    assert isinstance(short.checks[0], RecordedBounds) and not short.ok
