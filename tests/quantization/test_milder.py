"""Milder settings change less, step by step, and are settings of the pass."""

from __future__ import annotations

import pytest

from moec.passes.quantize import Quantize
from moec.passes.skip_experts import SkipExperts
from moec.passes.upcycle import Upcycle
from moec.pipeline.pipeline import Pipeline
from moec.proof.checks.weights import QuantizedWeights
from tests.learned import captured


@pytest.mark.parametrize(
    "item",
    [Quantize(), Quantize(bits=2), Quantize(bits=8), Quantize(bits=4, dense=2, lm_head=16)],
    ids=str,
)
def test_each_makes_a_smaller_error(item: Quantize) -> None:
    assert item.milder() and item not in item.milder()
    errors = [error(Pipeline((p,))) for p in (item, *item.milder())]
    assert all(milder <= errors[0] for milder in errors[1:]) and errors[-1] < errors[0]


def error(pipeline: Pipeline) -> float:
    found = QuantizedWeights.of(pipeline.run(captured())[0], captured())
    assert found is not None
    return sum(e.relative for e in found.worst)


def test_what_was_left_stays_and_a_budget_goes() -> None:
    last = Quantize(bits=4, budget_bits=3.0, lm_head=16, rules={"*": 4}).milder()[-1]
    assert last == Quantize(bits=8, lm_head=16, rules={"*": 4})
    small = Quantize(recipe={"experts": {"bits": 2, "method": "rtn"}, "attention": 4, "lm_head": 16})
    assert [m.recipe["experts"]["bits"] for m in small.milder()] == [2, 2, 4, 8, 8]  # type: ignore[index]
    assert small.milder()[-1].recipe == {"experts": {"bits": 8, "method": "rtn"}, "attention": 8, "lm_head": 16}
    assert Quantize(format="nvfp4", group=16).milder() == (Quantize(bits=8, format="fp8", group=16),)
    assert Quantize(bits=8, format="fp8").milder() == ()


def test_other_passes_say_theirs() -> None:
    assert SkipExperts(alpha=0.5).milder() == (SkipExperts(alpha=0.3), SkipExperts(alpha=0.1))
    assert Upcycle(reinit=0.5).milder() == (Upcycle(reinit=0.25), Upcycle(reinit=0.0)) and Upcycle().milder() == ()
