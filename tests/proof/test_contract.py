"""A pipeline ends at a pass that does not keep its word."""

from __future__ import annotations

import pytest
import torch

from moec.errors import MoecError
from moec.proof.compare import Tolerance
from moec.proof.contract import VerifyHook
from tests.moe_module import MoeModel, source_of
from tests.pipeline.scaling import ScaleHead, ScaleRoughly, run

FP32, BUDGET = Tolerance.of(torch.float32), Tolerance(0.5)


def verifier() -> VerifyHook:
    return VerifyHook([source_of(MoeModel()).sample({"batch": 2, "sequence": 7})], FP32, BUDGET)


def test_exact_passes_that_are_exact_pass() -> None:
    hook = verifier()
    run(ScaleHead(1 + 1e-6), ScaleHead(1 - 1e-6), hooks=[hook])
    assert [c.ok for _, c in hook.comparisons] == [True, True]
    assert 0 < hook.comparisons[0][1].worst.deviation < FP32.deviation


def test_an_exact_pass_that_is_not_breaks_its_contract() -> None:
    with pytest.raises(MoecError, match="exact pass") as error:
        run(ScaleHead(1.01), hooks=[verifier()])
    assert error.value.code == "M102"


def test_an_approximate_pass_has_a_budget_and_no_more() -> None:
    run(ScaleRoughly(1.01), hooks=[verifier()])
    with pytest.raises(MoecError, match="error budget") as error:
        run(ScaleRoughly(3.0), hooks=[verifier()])
    assert error.value.code == "M102"


def test_the_budget_is_for_all_approximate_passes_together() -> None:
    once = 1.08
    run(ScaleRoughly(once), hooks=[verifier()])
    with pytest.raises(MoecError, match="error budget"):
        run(*[ScaleRoughly(once + 1e-6 * n) for n in range(5)], hooks=[verifier()])


def test_an_exact_pass_after_an_approximate_one_is_held_to_the_program_before_it() -> None:
    run(ScaleRoughly(1.01), ScaleHead(1 + 1e-6), hooks=[verifier()])
    with pytest.raises(MoecError, match="exact pass"):
        run(ScaleRoughly(1.01), ScaleHead(1.01), hooks=[verifier()])
