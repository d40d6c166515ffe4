"""`calibrate-router`: tokens go to the untouched model's experts more often, on text that it has not seen; it says what
it left and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moec
from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.passes.calibrate_router import CalibrateRouter
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import text_inputs
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.proof.agreement import measure_agreement
from tests.moe_module import MoeModel, source_of
from tests.zoo import save

QUANTIZE, FLOOR = "quantize(bits=2, group=16, experts=16)", 150


def tokens(count: int, seed: int) -> Tensor:
    return torch.randint(3, 50, (count,), generator=torch.Generator().manual_seed(seed))


def context(count: int = 2048, seed: int = 0) -> Context:
    return Context(calibration=Calibration(CalibrationText("text", 0, 64), "ab" * 32, tokens(count, 0), seed=seed))


def quantized(program: Program, given: Context, passes: str = QUANTIZE) -> Program:
    given.unquantized = program.clone()
    return Pipeline.parse(passes).run(program, given)[0]


def calibrated(program: Program, given: Context, **options: Any) -> tuple[Program, dict[str, Any]]:
    made, steps = Pipeline((CalibrateRouter(**{"floor": FLOOR, **options}),)).run(program, given)
    return made, {"rewrites": steps[0].rewrites, **steps[0].facts}


def agreement(captured: Program, program: Program) -> list[float]:
    """Of each block, on other tokens than those of the calibration."""
    samples = [text_inputs(captured.inputs, ids) for ids in tokens(1024, 1).view(4, 4, 64)]
    return [b.shared for b in measure_agreement(captured, program, samples).blocks]


@pytest.fixture(scope="module")
def case(mixtral: Path) -> tuple[Program, Program, Context]:
    """The untouched Mixtral, the same at 2 bits but for its experts, and the context that made it."""
    captured, given = open_source(str(mixtral), cache=False).capture(), context()
    return captured, quantized(captured, given), given


# ---------------------------------------------------------------------- what it does
def test_tokens_go_where_they_went(case: tuple[Program, Program, Context]) -> None:
    captured, before, given = case
    after, facts = calibrated(before, given)
    assert facts["rewrites"] == 2 and [b["calibrated"] for b in facts["blocks"]] == [True, True]
    gains = [b - a for a, b in zip(agreement(captured, before), agreement(captured, after), strict=True)]
    assert min(gains) > 0.02
    for block in facts["blocks"]:
        assert block["changed_after"] < block["changed_before"] and block["identical_after"] > block["identical_before"]
        assert (
            block["loss_after"] < block["loss_before"]
            and block["rows_fitted"] == 8
            and block["rows_left"] == 0
            and block["tokens_least"] > FLOOR
        )
    changed = {n for n in after.weights if after.weights[n] is not before.weights[n]}
    assert (
        changed == {f"model.layers.{n}.mlp.gate.weight" for n in (0, 1)}
        and after.graph_module.code == before.graph_module.code
    )


def test_a_later_router_is_fitted_behind_the_earlier_ones(case: tuple[Program, Program, Context]) -> None:
    """The second router fits what the corrected first one brings to it: put behind the first one as it was, it errs
    more."""
    captured, before, given = case
    after, _ = calibrated(before, given)
    alone = before.clone()
    alone.weights["model.layers.1.mlp.gate.weight"] = after.weights["model.layers.1.mlp.gate.weight"]
    assert agreement(captured, after)[1] > agreement(captured, alone)[1]


def test_twice_changes_nothing_and_equal_seeds_make_equal_programs(case: tuple[Program, Program, Context]) -> None:
    _, before, given = case
    once, _ = calibrated(before, given)
    again, _ = Pipeline((CalibrateRouter(floor=FLOOR),), frozenset({"calibrate-router"})).run(once, given)
    assert again.history[-1].rewrites == 0 and again.text() == once.text()
    repeated, _ = calibrated(before, given)
    name = "model.layers.1.mlp.gate.weight"
    assert repeated.text() == once.text() and torch.equal(repeated.weights[name].load(), once.weights[name].load())
    other = context(seed=1)
    other.unquantized = given.unquantized
    assert not torch.equal(calibrated(before, other)[0].weights[name].load(), once.weights[name].load())


@pytest.mark.parametrize("passes", ["find-moe", "find-moe, fuse-moe"])
def test_routers_that_were_found_already(passes: str, case: tuple[Program, Program, Context]) -> None:
    captured, before, given = case
    raw, _ = calibrated(before, given)
    rewritten, _ = Pipeline.parse(passes).run(before)
    made, facts = calibrated(rewritten, given)
    assert facts["rewrites"] == 2
    for name in ("model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight"):
        torch.testing.assert_close(made.weights[name].load(), raw.weights[name].load(), rtol=1e-3, atol=1e-4)
    assert min(b - a for a, b in zip(agreement(captured, before), agreement(captured, made), strict=True)) > 0.02


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3"])
def test_biases_stay(name: str, tmp_path: Path) -> None:
    """A bias of the logits, and a correction bias of sigmoid scores that only chooses."""
    captured, given = open_source(save(name, tmp_path / name), cache=False).capture(), context()
    before = quantized(captured, given)
    after, facts = calibrated(before, given)
    changed = {n.rpartition(".")[2] for n in after.weights if after.weights[n] is not before.weights[n]}
    assert facts["rewrites"] == len(moe_nodes(captured)) and changed == {"weight"}
    assert sum(agreement(captured, after)) > sum(agreement(captured, before))


def test_an_engine_is_proven_again_from_the_same_text(mixtral: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "learn.npy", tokens(4096, 0))
    np.save(tmp_path / "judge.npy", tokens(512, 1))
    text: dict[str, Any] = {
        "text": tmp_path / "judge.npy",
        "window": 64,
        "max_kl": 0.5,
    }  # in place of a bound that one other choice of an expert breaks
    pipeline = "quantize(bits=8, group=16), calibrate-router(floor=100)"
    report = moec.compile(
        str(mixtral), out=tmp_path / "engine", pipeline=pipeline, calibration=tmp_path / "learn.npy", **text
    )
    assert [b["rows_fitted"] for b in report.steps[1]["facts"]["blocks"]] == [8, 8] and report.steps[1][
        "contract"
    ] == "approximate"
    proof = moec.verify(tmp_path / "engine", **text)
    assert proof.ok and proof.quality is not None and report.quality is not None and proof.quality.shift is not None
    assert proof.quality.kl_mean == pytest.approx(report.quality.kl_mean, rel=1e-2) and "changed choices alone" in str(
        proof
    )
    page = (tmp_path / "engine" / "report.html").read_text()
    assert "Routers fitted anew" in page and "What the damage comes from" in page


# ---------------------------------------------------------------------- what it leaves
def test_few_tokens_leave_rows_and_routers(case: tuple[Program, Program, Context]) -> None:
    _, before, given = case
    seen = calibrated(before, given, top=2, floor=1)[1]["blocks"]
    some, facts = calibrated(before, given, top=2, floor=seen[0]["tokens_median"])
    assert all(0 < b["rows_left"] < 8 for b in facts["blocks"][:1])
    name = "model.layers.0.mlp.gate.weight"
    same = (some.weights[name].load() == before.weights[name].load()).all(-1)
    assert int(same.sum()) == facts["blocks"][0]["rows_left"]
    with pytest.raises(MoecError, match=r"changed nothing: .*no expert is among the best of 9999 tokens") as caught:
        calibrated(before, given, floor=9999)
    assert caught.value.code == "M103"


def test_routers_that_lost_nothing_are_missed() -> None:
    """Nothing was made coarser, so nothing can be gained."""
    captured, given = source_of(MoeModel()).capture(), context()
    given.unquantized = captured.clone()
    program, _ = Pipeline((CalibrateRouter(floor=1),), frozenset({"calibrate-router"})).run(captured, given)
    assert program.text() == captured.text() and len(given.misses) == 2
    assert all("its logits are the untouched model's" in m.reason for m in given.misses)


def test_a_fit_that_does_not_help_is_a_miss(case: tuple[Program, Program, Context]) -> None:
    """64 tokens of some words teach nothing of other words."""
    _, before, given = case
    overfitted = Context(
        calibration=Calibration(
            CalibrationText("text", 0, 64), "", torch.cat([tokens(64, 0), 60 + tokens(64, 1) % 30])
        ),
        unquantized=given.unquantized,
    )
    program, _ = Pipeline((CalibrateRouter(floor=1, ridge=1e-6),), frozenset({"calibrate-router"})).run(
        before, overfitted
    )
    assert program.text() == before.text() and len(overfitted.misses) == 2
    assert all("does not lower its error on the text held back" in m.reason for m in overfitted.misses)


def test_a_block_that_was_pruned_since_is_left() -> None:
    captured, given = source_of(MoeModel()).capture(), context()
    smaller = MoeModel()
    for block in smaller.blocks:
        for name, value in list(block.named_parameters()):
            setattr(block, name, torch.nn.Parameter(value[:3]))
    given.unquantized = captured
    with pytest.raises(MoecError, match="chooses among 3 experts, and chose among 4 before"):
        calibrated(source_of(smaller).capture(), given)


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"top": -1}, "top=-1"),
        ({"top": 1}, "chooses 2 of 8"),
        ({"top": 9}, "chooses 2 of 8"),
        ({"ridge": 0.0}, "ridge=0"),
        ({"ridge": float("nan")}, "ridge=nan"),
        ({"floor": 0}, "floor=0"),
        ({"floor": "many"}, "floor='many'"),
        ({"top": 2.5}, "top=2.5"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(
    options: dict[str, Any], what: str, case: tuple[Program, Program, Context]
) -> None:
    _, before, given = case
    with pytest.raises(MoecError, match=what) as caught:
        calibrated(before, given, **options)
    assert caught.value.code == "M203"


def test_what_it_needs(case: tuple[Program, Program, Context]) -> None:
    captured, before, given = case
    short = Context(
        calibration=Calibration(CalibrationText("text", 64, 64), "", tokens(64, 0)), unquantized=given.unquantized
    )
    cases = [
        (Context(unquantized=captured), "needs a text to calibrate on", "--calibration FILE"),
        (Context(calibration=given.calibration), "no pass before it", "put quantize before it"),
        (short, "one window", "--calibration-tokens"),
    ]
    for wrong, what, fix in cases:
        with pytest.raises(MoecError, match=what) as caught:
            calibrated(before, wrong)
        assert caught.value.code == "M203" and fix in caught.value.fix


def test_blocks_that_came_or_went_since(case: tuple[Program, Program, Context]) -> None:
    _, before, given = case
    other = Context(calibration=given.calibration, unquantized=source_of(MoeModel((False,))).capture())
    with pytest.raises(MoecError, match="has 2 mixture-of-experts blocks, and had 1 before") as caught:
        calibrated(before, other)
    assert caught.value.code == "M203"
