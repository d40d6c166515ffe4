"""Inputs of a proof stay within what both engines are made for, whatever they are compared with."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from torch import Tensor

from moec.compiler.prove_again import _bisect
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.proof.evidence import all_tokens, compared, far_decided, sizes_to_prove
from moec.proof.inputs import reach_experts
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.proof.verification import prove
from moec.weights.lazy import from_tensor
from tests.moe_module import MoeModel, source_of
from tests.proof.bounded import Bounded, Picky
from tests.proof.test_inputs import by_token


@pytest.fixture(scope="module")
def subject() -> Subject:
    source = source_of(MoeModel())
    program = source.capture()
    return Subject(source, program, program)


def against(subject: Subject, other: EagerEngine) -> Subject:
    return Subject(subject.source, subject.captured, subject.program, against=other)


def test_two_engines_are_compared_where_both_run(subject: Subject) -> None:
    narrow, wide = Bounded(subject.program), EagerEngine(subject.program)
    for engine, other in ((narrow, wide), (wide, narrow), (narrow, narrow)):
        proof = prove(against(subject, other), engine)
        assert proof.ok and proof.comparison.samples > 1


def test_two_engines_that_differ_are_told_apart_within_bounds(subject: Subject) -> None:
    wrong = subject.program.clone()
    wrong.weights["head.bias"] = from_tensor(subject.program.weights["head.bias"].load() + 1, "spoiled")
    assert not prove(against(subject, EagerEngine(wrong)), Bounded(subject.program)).ok


def test_bisection_keeps_to_the_bounds(subject: Subject) -> None:
    programs = [("capture", subject.program)]
    assert _bisect(Trial(subject, Bounded(subject.program)), programs, Bounded(subject.program), iter(())).stage == ""
    wrong = subject.program.clone()
    spoiled = subject.program.weights["blocks.1.w_out"].load().clone()
    spoiled[2] *= 1.5
    wrong.weights["blocks.1.w_out"] = from_tensor(spoiled, "spoiled")
    assert _bisect(Trial(subject, Bounded(wrong)), programs, Bounded(wrong), iter(())).stage == "the backend's lowering"


def test_an_engine_that_runs_nowhere_is_refused(subject: Subject) -> None:
    broken = Picky(subject.program, 0)
    broken._length = -1
    broken.run = lambda inputs: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(MoecError, match="runs at no size") as caught:
        Trial(subject, broken).once(sizes_to_prove)
    assert caught.value.code == "M101"
    with pytest.raises(MoecError, match="runs at no size") as caught:
        Trial(against(subject, broken), EagerEngine(subject.program)).once(sizes_to_prove)
    assert caught.value.code == "M204"


def test_what_is_compared_is_what_coverage_speaks_of(subject: Subject) -> None:
    trial = Trial(subject, EagerEngine(subject.program))
    evidence, comparison = trial.once(compared)
    assert evidence is trial.once(all_tokens) and comparison.samples == len(evidence.whole) > len(evidence.samples)
    assert evidence.coverage.complete and evidence.compared is None and evidence.decided is None


def test_a_streamed_proof_searches_with_many_tokens(subject: Subject) -> None:
    streamed = Subject(subject.source, subject.captured, subject.program, reference="streamed")
    trial = Trial(streamed, EagerEngine(subject.program))
    assert [s["sequence"] for s in trial.once(sizes_to_prove).possible] == [7, 1]
    looked_at, rare = list[int](), by_token([0] * 199 + [1], 2)
    reach_experts(
        rare.capture(),
        rare,
        [{"batch": 1, "sequence": 1}],
        tries=3,
        holds=lambda sample: looked_at.append(sample["input_ids"].numel()) or True,  # type: ignore[func-returns-value]
    )
    assert max(looked_at) == 8 * 37  # whatever is compared, the search takes the size of the most tokens


class Late(EagerEngine):
    """Wrong in texts of more than 300 tokens."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = super().run(inputs)
        return {n: v * 1.1 if inputs["input_ids"].shape[1] > 300 else v for n, v in outputs.items()}


def test_bisection_looks_at_the_long_input_that_shows_the_error(subject: Subject) -> None:
    late, right = Late(subject.program), EagerEngine(subject.program)
    found = _bisect(Trial(subject, late, 2), [("capture", subject.program)], late, iter(()))
    assert found.stage == "the backend's lowering"
    assert _bisect(Trial(subject, right, 2), [("capture", subject.program)], right, iter(())).stage == ""


def test_long_inputs_are_held_to_what_rounding_cannot_change(subject: Subject) -> None:
    """Small inputs are compared whole; of long ones, tokens that hang on rounding are left out, and listed."""
    evidence = Trial(subject, EagerEngine(subject.program)).once(far_decided)
    tokens = evidence.compared or []
    assert tokens[: len(evidence.samples)] == [None] * len(evidence.samples) and len(tokens) == len(evidence.whole)
    assert [t.total for t in tokens if t] == [512, 513] and all(t.count for t in tokens if t)
    with pytest.raises(MoecError, match="differs"):  # what is wrong stays wrong on the tokens that are left
        prove(subject, Late(subject.program)).require()
