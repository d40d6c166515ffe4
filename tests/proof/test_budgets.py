"""The default budget follows from the narrowest width, and a pass that makes good for a quantization gets none."""

from __future__ import annotations

from moec.pipeline.pipeline import Pipeline
from moec.program.program import AppliedPass
from moec.proof.budgets import Budget, budget_of
from tests.learned import captured


def step(*widths: int, contract: str = "approximate") -> AppliedPass:
    return AppliedPass("quantize", 1, contract, widths=widths)


def test_narrower_weights_may_cost_more_and_never_less() -> None:
    found = [budget_of([step(bits)]) for bits in (8, 4, 3, 2)]
    assert [b.max_kl for b in found] == [0.005, 0.05, 0.1, 0.3]
    agreements = [b.min_top1 or 0 for b in found]
    assert agreements == sorted(agreements, reverse=True) and len({*agreements}) == 4
    outputs = [b.max_rms for b in found]
    assert outputs == sorted(outputs) and len({*outputs}) == 4 and outputs[-1] < 1  # what is always 0 has an rms of 1
    rows = [b.max_row for b in found]
    assert rows == sorted(rows) and all(r < 2**0.5 for r in rows)  # what an unrelated row has
    assert budget_of([step(4, 8)]).max_kl == 0.05 and budget_of([step(8), step(2, 4)]).max_kl == 0.3


def test_a_pass_that_says_no_width_has_a_budget_of_its_own() -> None:
    assert budget_of([step()]).max_kl == budget_of([step(8), step()]).max_kl == 0.2
    assert budget_of([step(2), step()]).max_kl == 0.3
    assert budget_of([step(contract="exact"), step(8)]).max_kl == 0.005  # exact ones may change nothing


def test_of_two_budgets_the_looser_of_each_figure_counts() -> None:
    both, three = budget_of([step(3), step()]), budget_of([step(3)])
    assert (both.max_kl, both.min_top1, both.max_rms) == (0.2, 0.75, 0.7) and both.max_row == three.max_row
    assert "3 bits" in both.why and "more than round" in both.why
    assert budget_of([step(2), step()]) == budget_of([step(2)]) and budget_of([step(8), step()]) == budget_of([step()])


def test_what_was_asked_for_counts_alone() -> None:
    assert budget_of([step(4)], 0.7) == Budget(0.7)


def test_quantize_says_its_widths_and_three_bits_are_three() -> None:
    for text, widths in (("bits=3", (3, 8)), ("bits=4, lm_head=16", (4,)), ("bits=8, format=fp8", (8,))):
        program, _ = Pipeline.parse(f"quantize({text})").run(captured())
        assert program.history[-1].widths == widths
    assert captured().history == []
