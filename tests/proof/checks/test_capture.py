"""What a capture got wrong hides in no budget of approximate passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.pipeline.pipeline import Pipeline
from moec.proof.checks.capture import Capture
from moec.proof.subject import Subject
from moec.proof.verification import prove
from moec.weights.lazy import from_tensor
from tests.moe_module import MoeModel, source_of

ROUGH = Pipeline.parse("quantize(bits=8, group=16, experts=16)")


def subject(shift: float = 0.0) -> Subject:
    """A model whose capture is off by a share of its outputs' spread."""
    source = source_of(MoeModel())
    captured = source.capture()
    bias = captured.weights["head.bias"].load()
    captured.weights["head.bias"] = from_tensor(bias + shift, "shifted")
    return Subject(source, captured, ROUGH.run(captured)[0])


def test_a_right_capture_passes() -> None:
    right = subject()
    proof = prove(right, EagerEngine(right.program))
    found = proof.find(Capture)
    assert proof.ok and found is not None and found.comparison.candidate == "the captured program"


def test_a_wrong_one_is_found_within_the_budget() -> None:
    wrong = subject(0.3)
    proof = prove(wrong, EagerEngine(wrong.program))
    assert proof.comparison.ok and not proof.ok  # the budget alone would let it pass
    with pytest.raises(MoecError, match="the captured program differs") as caught:
        proof.require()
    assert caught.value.code == "M101"


def test_it_is_asked_where_the_model_is_there_and_passes_are_rough() -> None:
    right = subject()
    for other in (
        replace(right, program=right.captured),
        replace(right, reference="streamed"),
        replace(right, precision=torch.float16),
    ):
        assert prove(other, EagerEngine(other.program), [Capture]).find(Capture) is None
