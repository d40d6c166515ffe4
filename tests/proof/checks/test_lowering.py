"""After approximate passes the engine is held to its own program, so that their budget hides no wrong lowering."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.proof.checks.lowering import Lowering
from moec.proof.compare import Tolerance
from moec.proof.decided_tokens import Decided
from moec.proof.subject import Subject
from moec.proof.verification import Verification, prove
from tests.moe_module import MoeModel, source_of


class Shifted(EagerEngine):
    """Every output off by some of its standard deviations."""

    def __init__(self, program: Program, by: float) -> None:
        super().__init__(program)
        self.name, self._by = "shifted", by

    def run(self, inputs) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        return {name: value + self._by * value.std() for name, value in super().run(inputs).items()}


@pytest.fixture(scope="module")
def subject() -> Subject:
    source = source_of(MoeModel())
    captured = source.capture()
    program, _ = Pipeline.parse("quantize(bits=8, group=16, experts=16)").run(captured)
    return Subject(source, captured, program)


def lowering(proof: Verification) -> Lowering:
    found = proof.find(Lowering)
    assert found is not None
    return found


def test_a_right_engine_passes(subject: Subject) -> None:
    proof = prove(subject, EagerEngine(subject.program))
    assert proof.ok and lowering(proof).comparison.tolerance == Tolerance.of(subject.precision).deviation
    assert "the program that it was built from" in str(proof)


def test_a_shift_within_the_budget_is_found(subject: Subject) -> None:
    proof = prove(subject, Shifted(subject.program, 0.3))
    assert proof.comparison.ok and not lowering(proof).ok and not proof.ok  # 0.3 of 0.5 allowed, but not quantize's
    with pytest.raises(MoecError, match="shifted differs from the program that it was built from") as caught:
        proof.require()
    assert caught.value.code == "M101"


def test_a_wrong_lowering_is_reported_before_what_it_makes_wrong(subject: Subject) -> None:
    proof = prove(subject, Shifted(subject.program, 3.0))
    assert not proof.ok and not lowering(proof).ok
    with pytest.raises(MoecError, match="the program that it was built from"):
        proof.require()


def test_inexact_kernels_have_a_bound_of_their_own(subject: Subject) -> None:
    inexact = replace(subject, kernel_deviation=0.4)
    assert lowering(prove(inexact, Shifted(subject.program, 0.05))).ok
    assert not lowering(prove(inexact, Shifted(subject.program, 0.6))).ok


def test_of_few_tokens_a_lowering_is_not_proven(subject: Subject) -> None:
    found = lowering(prove(subject, EagerEngine(subject.program)))
    few = replace(found, decided=Decided("float16", 5e-3, 9, 1000))
    assert found.ok and few.comparison.ok and not few.ok and not few.figures()[-1].ok
    assert replace(found, decided=Decided("float16", 5e-3, 900, 1000)).ok


def test_without_approximate_passes_the_comparison_says_it(subject: Subject) -> None:
    exact = replace(subject, program=subject.captured)
    assert prove(exact, EagerEngine(subject.captured)).find(Lowering) is None
