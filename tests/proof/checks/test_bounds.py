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


class NotNumbers(EagerEngine):
    """Outputs that no tolerance accepts."""

    def run(self, inputs) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        return {name: float("nan") * value for name, value in super().run(inputs).items()}


class Short(EagerEngine):
    """Refuses longer inputs."""

    def run(self, inputs) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        if any(value.numel() > 24 for value in inputs.values()):
            raise ValueError("too long")
        return super().run(inputs)


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
    assert caught.value.code == "M111" and "on the command, --tolerance 50" in caught.value.fix
    assert not proof.ok and proof.checks[0].figures()[0].ok is False
    assert prove(replace(subject, looser=(), asked=50.0), Twice(subject.program)).ok  # what it says
    short = prove(subject, Twice(subject.program), until_failure=True)
    assert isinstance(short.checks[0], RecordedBounds) and not short.ok


@pytest.mark.parametrize("engine", [NotNumbers, Short])
def test_what_no_bound_turns_is_not_blamed_on_one(subject: Subject, engine: type[EagerEngine]) -> None:
    proof = prove(subject, engine(subject.program))
    with pytest.raises(MoecError) as caught:
        proof.require()
    found = proof.find(RecordedBounds)
    assert caught.value.code == "M101" and found is not None and found.ok


def test_a_bound_of_something_else_is_not_blamed(subject: Subject) -> None:
    other = (RecordedBound("max_perplexity_ratio", "50", "1.005", "--text t --max-perplexity-ratio 50"),)
    with pytest.raises(MoecError) as caught:
        prove(replace(subject, looser=other), Twice(subject.program)).require()
    assert caught.value.code == "M101"
    target = (RecordedBound("target precision=fp16", "claimed", "the engine's files show none"),)
    with pytest.raises(MoecError) as caught:
        prove(replace(subject, looser=target), Twice(subject.program)).require()
    assert caught.value.code == "M111" and caught.value.fix == "compile the engine anew"
