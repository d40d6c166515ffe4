"""`set-top-k`: the model with another number in its config, to the last digit; scaled where that is nearer to what it
said before."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from moec.errors import MoecError
from moec.huggingface.source import HuggingFaceSource
from moec.passes import set_top_k
from moec.passes.set_top_k import SetTopK
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from tests import zoo

TOLERANCE = 2e-5
SIZES = {"batch": 2, "sequence": 9}


@cache
def source(name: str) -> HuggingFaceSource:
    return zoo.source(name, cache=False)


def context() -> Context:
    ids = torch.randint(0, zoo.VOCAB, (512,), generator=torch.Generator().manual_seed(0))
    return Context(calibration=Calibration(CalibrationText("text", 0, 32), "", ids))


def changed(name: str, how: str) -> tuple[Program, list[dict[str, Any]]]:
    done, steps = Pipeline.parse(how).run(zoo.captured(name, cache=False), context())
    return done, next(s.facts["blocks"] for s in steps if s.name.startswith("set-top-k"))


def apart(found: Program, wanted: dict[str, torch.Tensor], name: str) -> float:
    got = found.run(**source(name).sample(SIZES))
    return max(float((got[k] - v).abs().max() / v.std()) for k, v in wanted.items())


ROUTERS = ["mixtral", *(pytest.param(n, marks=pytest.mark.repeats) for n in ("qwen2_moe", "deepseek_v3", "gpt_oss"))]


@pytest.mark.parametrize("name", ROUTERS)
def test_fewer_experts_are_what_the_config_would_say(name: str) -> None:
    one = {"num_experts_per_tok": 1}
    fewer = HuggingFaceSource.from_model(zoo.build(name, **one), cache=False).reference()
    done, blocks = changed(name, "set-top-k(top_k=1, rescale=False)")
    assert len(blocks) == len(moe_nodes(done)) and all(MoeCall(n).top_k == 1 for n in moe_nodes(done))
    assert apart(done, fewer.run(source(name).sample(SIZES)), name) < TOLERANCE
    untouched = source(name).reference().run(source(name).sample(SIZES))
    assert apart(done, untouched, name) > 100 * TOLERANCE  # the bound tells them apart


ALL = ["olmoe", *(pytest.param(n, marks=pytest.mark.repeats) for n in ("mixtral", "qwen2_moe", "gpt_oss"))]


@pytest.mark.parametrize("name", ALL)
def test_of_a_model_with_all_experts_active_too(name: str) -> None:
    """Softmax over all of them has the sum 1, renormalised or not: the router's nodes say which holds for fewer."""
    every, one = (HuggingFaceSource.from_model(zoo.build(name, num_experts_per_tok=k), cache=False) for k in (8, 2))
    done, _ = Pipeline.parse("set-top-k(top_k=2, rescale=False)").run(every.capture(), context())
    assert apart(done, one.reference().run(source(name).sample(SIZES)), name) < TOLERANCE


def test_raw_scores_are_renormalised_where_the_whole_model_is_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(iter(context().require_calibration().batches(zoo.captured("qwen2_moe", cache=False).inputs)))
    whole = zoo.captured("qwen2_moe", cache=False).run(**batch)["logits"].log_softmax(-1)

    def away() -> tuple[float, str]:
        done, blocks = changed("qwen2_moe", "set-top-k(1)")
        found = done.run(**batch)["logits"].log_softmax(-1)
        return float((whole.exp() * (whole - found)).sum()), str(blocks[0]["combine"])

    chosen = away()
    real = set_top_k._apart
    monkeypatch.setattr(set_top_k, "_apart", lambda *given: -real(*given))
    other = away()
    assert {chosen[1], other[1]} == {"scores", "renormalize"} and chosen[0] < other[0]


def test_the_scale_is_in_the_routing_and_the_report_says_what_each_number_costs() -> None:
    scaled, blocks = changed("qwen2_moe", "set-top-k(1), fuse-moe")
    errors = [[b["error at 1"], b["error at 2"]] for b in blocks]
    assert all(1 > first > second > 0 for first, second in errors) and all(b["scale"] != 1 for b in blocks)
    call = MoeCall(moe_nodes(scaled)[0])
    assert call.routing is not None and call.routing.scale == pytest.approx(blocks[0]["scale"])


def test_a_share_is_spread_over_the_layers() -> None:
    done, blocks = changed("qwen2_moe", "set-top-k(0.67)")  # 4 of the 6 of two layers
    left = {b["module"]: b["top_k"] for b in blocks}
    assert sum(MoeCall(n).top_k for n in moe_nodes(done)) == 4 and all(k < 3 for k in left.values())


def test_its_plan_has_the_form_of_what_is_made() -> None:
    plan = SetTopK(1).plan(
        Pipeline.parse("find-moe").run(zoo.captured("mixtral", cache=False), Context())[0], context()
    )
    assert (plan.least, plan.most) == (2, 2) and all(MoeCall(n).top_k == 1 for n in moe_nodes(plan.program))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("set-top-k(3)", "set top_k to at most 2"),
        ("set-top-k(0)", "no number of experts"),
        ("set-top-k(1.5)", "no number of experts"),
        ("find-moe, fuse-moe, set-top-k(1)", "before fuse-moe"),
    ],
)
def test_what_cannot_be_is_refused_in_three_lines(how: str, words: str) -> None:
    with pytest.raises(MoecError) as caught:
        changed("mixtral", how)
    assert words in str(caught.value) and str(caught.value).count("\n") == 2
