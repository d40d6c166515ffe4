"""An engine is proven at other sizes than the capture's, and a wrong one is refused."""

from __future__ import annotations

import pytest
import torch

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.proof.checks.experts import ExpertsReached
from moec.proof.subject import Subject
from moec.proof.verification import prove
from moec.weights.lazy import from_tensor
from tests.moe_module import MoeModel, source_of
from tests.proving import sizes, verify


def test_the_captured_program_is_proven() -> None:
    source = source_of(MoeModel())
    program = source.capture()
    found = verify(source, EagerEngine(program), program)
    assert found.ok and found.comparison.outputs[0].deviation < 1e-5 and not sizes(found).refused
    run = sizes(found).sizes
    assert {"batch": 1, "sequence": 1} in run and all(s["sequence"] != 11 for s in run)
    assert len(run) == found.comparison.samples > found.coverage.samples  # long ones are run, not searched from
    assert max(s["sequence"] for s in run) == 513  # nothing says how long its texts may be
    found.require()


@pytest.mark.parametrize("expert", [0, 3])
def test_one_slightly_wrong_expert_is_found(expert: int) -> None:
    source = source_of(MoeModel())
    program = source.capture()
    wrong = program.clone()
    spoiled = program.weights["blocks.1.w_out"].load().clone()
    spoiled[expert] *= 1.05
    wrong.weights["blocks.1.w_out"] = from_tensor(spoiled, "spoiled")
    found = verify(source, EagerEngine(wrong), program)
    assert not found.ok
    with pytest.raises(MoecError) as error:
        found.require()
    assert error.value.code == "M101"


def test_nan_in_the_untouched_model_ends_the_proof() -> None:
    model = MoeModel()
    source = source_of(model)
    program = source.capture()
    with torch.no_grad():
        model.head.bias[3] = float("nan")
    with pytest.raises(MoecError) as error:
        verify(source, EagerEngine(program), program)
    assert error.value.code == "M105"


def test_a_proof_ends_at_the_first_failure_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(MoeModel())
    program = source.capture()
    wrong = program.clone()
    wrong.weights["head.bias"] = from_tensor(program.weights["head.bias"].load() + 1, "spoiled")
    subject, engine = Subject(source, program, program), EagerEngine(wrong)
    every, short = prove(subject, engine), prove(subject, engine, until_failure=True)
    assert not every.ok and not short.ok and short.checks == every.checks[: len(short.checks)]
    assert short.checks[-1].name == "outputs" and every.checks[-1].name == "experts"
    monkeypatch.setattr(ExpertsReached, "measure", lambda trial: 1 / 0)
    assert [c.name for c in prove(subject, engine).checks] == [c.name for c in short.checks]  # it had failed already
    with pytest.raises(ZeroDivisionError):
        prove(subject, EagerEngine(program))
