"""A pipeline ends at a pass that does not keep its word."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from moec.errors import MoecError
from moec.execution.streaming import StreamingEngine
from moec.pipeline.passes import Context
from moec.program.program import Program
from moec.proof import contract
from moec.proof.budgets import OverBudget
from moec.proof.compare import Tolerance
from moec.proof.contract import VerifyHook
from moec.proof.own_text import write_own_text
from moec.weights.lazy import from_tensor
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


def test_what_a_pass_made_runs_once_and_is_what_the_next_is_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list[int]()
    real = StreamingEngine.run
    monkeypatch.setattr(StreamingEngine, "run", lambda e, given: runs.append(0) or real(e, given))  # type: ignore[func-returns-value]
    hook = verifier()
    run(ScaleHead(1 + 1e-6), ScaleHead(1 - 1e-6), ScaleHead(1 + 1e-6), hooks=[hook])
    assert len(runs) == 4
    kept = [c for _, c in hook.comparisons]
    monkeypatch.setattr(contract, "_KEPT_BYTES", 0)
    run(ScaleHead(1 + 1e-6), ScaleHead(1 - 1e-6), ScaleHead(1 + 1e-6), hooks=[hook := verifier()])
    assert len(runs) == 4 + 6 and [c for _, c in hook.comparisons] == kept
    run(ScaleHead(1 + 1e-6), hooks=[hook := verifier()])
    changed = source_of(MoeModel()).capture()  # another program than the last pass left
    before = len(runs)
    hook.before(1, ScaleHead(1.0), changed)
    hook.after(1, ScaleHead(1.0), changed, 0, 0.0)
    assert len(runs) == before + 2


def test_an_exact_pass_that_is_not_breaks_its_contract() -> None:
    with pytest.raises(MoecError, match="exact pass") as error:
        run(ScaleHead(1.01), hooks=[verifier()])
    assert error.value.code == "M102"


def test_an_approximate_pass_has_a_budget_and_no_more() -> None:
    run(ScaleRoughly(1.01), hooks=[verifier()])
    with pytest.raises(MoecError, match="error budget") as error:
        run(ScaleRoughly(3.0), hooks=[verifier()])
    assert error.value.code == "M102"


def test_what_is_no_language_model_has_the_budget_of_its_widths() -> None:
    hook = VerifyHook([source_of(MoeModel()).sample({"batch": 2, "sequence": 7})], FP32, None, by_width=True)
    run(ScaleRoughly(1.3), hooks=[hook])  # no width: what does more than round weights
    assert hook.comparisons[0][1].max_rms == 0.5 and hook.comparisons[0][1].tolerance is None
    for wrong in (ScaleRoughly(3.0), ScaleRoughly(-1.0), ScaleRoughly(0.0)):
        with pytest.raises(OverBudget, match=r"rms\(d\)/std"):
            run(wrong, hooks=[hook])


@dataclass(frozen=True)
class Mistake(ScaleRoughly):
    """Reads one embedding in ten as another's."""

    def apply(self, program: Program, context: Context) -> int:
        table = program.weights["embedding.weight"].load().clone()
        table[3::10] = table[4::10]
        program.weights["embedding.weight"] = from_tensor(table, "one row in ten is another's")
        return 1


def test_one_wrong_row_in_ten_breaks_the_budget() -> None:
    hook = VerifyHook([{"input_ids": torch.arange(50)[None]}], FP32, None, by_width=True)
    with pytest.raises(OverBudget, match="worst row"):
        run(Mistake(), hooks=[hook])
    assert hook.comparisons[0][1].worst.rms < 0.5  # all rows together would pass


def test_the_budget_is_for_all_approximate_passes_together() -> None:
    once = 1.08
    run(ScaleRoughly(once), hooks=[verifier()])
    with pytest.raises(MoecError, match="error budget"):
        run(*[ScaleRoughly(once + 1e-6 * n) for n in range(5)], hooks=[verifier()])


def judged(max_kl: float | None = None) -> VerifyHook:
    source = source_of(MoeModel())
    write = partial(write_own_text, source.reference(), source, 0)
    return VerifyHook([source.sample({"batch": 2, "sequence": 7})], FP32, None, write=write, max_kl=max_kl)


def test_a_language_model_is_judged_by_its_own_text() -> None:
    hook = judged()
    run(ScaleRoughly(1.01), ScaleHead(1 + 1e-6), hooks=[hook])
    assert [name for name, _ in hook.judged] == ["scale-roughly(factor=1.01)"] and len(hook.comparisons) == 1
    for wrong in (ScaleRoughly(3.0), ScaleRoughly(-1.0)):
        with pytest.raises(OverBudget, match="mean KL divergence") as error:
            run(wrong, hooks=[judged()])
        assert error.value.code == "M102"
    with pytest.raises(OverBudget, match="1e-09 allowed"):
        run(ScaleRoughly(1.01), hooks=[judged(max_kl=1e-9)])


def test_an_exact_pass_after_an_approximate_one_is_held_to_the_program_before_it() -> None:
    run(ScaleRoughly(1.01), ScaleHead(1 + 1e-6), hooks=[verifier()])
    with pytest.raises(MoecError, match="exact pass"):
        run(ScaleRoughly(1.01), ScaleHead(1.01), hooks=[verifier()])
