"""`carve`: exact with all experts, a share of the work with fewer, and refused where it cannot be."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import moec
from moec.errors import MoecError
from moec.execution.divergence import apart
from moec.experts import carving
from moec.experts.stream_step import Step
from moec.passes.carve import Carve
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.decoder_signature import text_inputs
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from tests import learned, zoo

TOLERANCE = 2e-5  # of the reference's standard deviation
SIZES = {"batch": 2, "sequence": 9}  # capture uses others


@cache
def source(name: str) -> Any:
    return zoo.source(name, cache=False)


def text(tokens: int = 1024) -> Calibration:
    ids = torch.randint(0, zoo.VOCAB, (tokens,), generator=torch.Generator().manual_seed(0))
    return Calibration(CalibrationText("text", 0, 32), "", ids)


def carved(name: str, how: str, tokens: int = 1024) -> tuple[Program, list[dict[str, Any]]]:
    dense = zoo.captured(name, cache=False)
    program, steps = Pipeline.parse(how).run(dense, Context(calibration=text(tokens)))
    return program, next(s.facts["layers"] for s in steps if s.name.startswith("carve"))


def error(name: str, program: Program) -> float:
    """Largest difference from the untouched model made anew, in standard deviations of its output."""
    sample = source(name).sample(SIZES)
    wanted, found = source(name).reference().run(sample), program.run(**sample)
    return max(float((found[k] - v).abs().max() / v.std()) for k, v in wanted.items())


# gated, Conv1D with biases; packed, an encoder
NAMES = ["llama", "gpt2", *(pytest.param(n, marks=pytest.mark.repeats) for n in ("phi3", "bert"))]


@pytest.mark.parametrize("name", NAMES)
def test_all_experts_are_the_dense_model_and_fewer_are_not(name: str) -> None:
    size = zoo.captured(name, cache=False)
    whole, layers = carved(name, "carve(experts=4, active=4, shared=1)")
    assert len(moe_nodes(whole)) == len(layers) == 2 and error(name, whole) < TOLERANCE
    assert Carve(experts=4, active=4).contract_of() == "exact"
    less, layers = carved(name, "carve(experts=4, active=2)")
    assert error(name, less) > 50 * TOLERANCE  # the bound tells them apart
    assert all(layer["carved"] > 0 and layer["active"] == 2 for layer in layers)
    assert not moe_nodes(size)  # the captured program is not touched


def test_it_lowers_to_one_mixture_and_its_plan_has_the_same_form() -> None:
    dense = zoo.captured("llama", cache=False)
    item, context = Carve(experts=4, active=2, shared=1), Context(calibration=text())
    plan = item.plan(dense, context)
    done, _ = Pipeline.parse(f"{item}, fuse-moe").run(dense, context)
    assert plan.most == plan.least == 2
    call = MoeCall(moe_nodes(done)[0])
    assert call.fused and call.top_k == 2 and call.routing is not None and call.routing.combine == "ones"
    shapes = {n: w.shape for n, w in plan.program.weights.items()}
    assert shapes == {n: w.shape for n, w in Pipeline.parse(str(item)).run(dense, context)[0].weights.items()}


def test_a_share_goes_where_it_costs_least_and_whole_layers_stay_dense() -> None:
    dense = zoo.captured("llama", cache=False)
    for name in [n for n in dense.weights if "layers.1.mlp.down" in n]:  # what layer 1 adds is next to nothing
        dense.weights[name] = dense.weights[name].__class__(
            **{**vars(dense.weights[name]), "read": lambda a, b, w=dense.weights[name]: w.read(a, b) * 1e-3}
        )
    done, steps = Pipeline.parse("carve(experts=4, active=0.625)").run(dense, Context(calibration=text()))
    layers = steps[-1].facts["layers"]
    assert [(layer["module"], layer["active"]) for layer in layers] == [("model.layers.1.mlp", 1)]
    assert len(moe_nodes(done)) == 1


def test_less_is_given_up_where_the_budget_would_not_allow_it() -> None:
    dense = zoo.captured("llama", cache=False)
    counts = []
    for max_kl in (None, 1e3, 1e-9):
        _, steps = (
            Pipeline.parse("carve(experts=4, active=0.5)")
            .all_optional()
            .run(dense, Context(calibration=text(), max_kl=max_kl))
        )
        counts.append([layer["active"] for layer in steps[-1].facts["layers"]])
    assert sum(counts[0]) == 4 and counts[1] == counts[0] and counts[2] == []


def test_equal_seeds_make_equal_programs() -> None:
    first, second = (carved("llama", "carve(experts=4, active=2)")[0] for _ in range(2))
    for name, weight in first.weights.items():
        assert torch.equal(weight.load(), second.weights[name].load()) and weight.origin == second.weights[name].origin


@pytest.mark.parametrize(
    ("how", "tokens", "words"),
    [
        ("carve(experts=4, active=5)", 1024, "between 1 and 4"),
        ("carve(experts=4, shared=3, active=2)", 1024, "between 3 and 4"),
        ("carve(experts=4, shared=5, active=2)", 1024, "between 0 and 4"),
        ("carve(experts=5, active=2)", 1024, "do not divide"),
        ("carve(experts=4, active=1.5)", 1024, "no share"),
        ("carve(experts=1, active=1)", 1024, "experts and shared count"),
        ("carve(experts=4, active=2, router='best')", 1024, "ridge, mean-row, analytical, random"),
        ("carve(experts=16, active=2)", 320, "at most 10 experts"),
    ],
)
def test_what_cannot_be_is_refused_in_three_lines(how: str, tokens: int, words: str) -> None:
    with pytest.raises(MoecError) as caught:
        carved("llama", how, tokens)
    assert words in str(caught.value) and str(caught.value).count("\n") == 2 and caught.value.code == "M203"


def test_options_and_texts_that_fit_no_model_are_refused_before_it_is_captured(tmp_path: Path) -> None:
    asked = {"out": tmp_path / "engine", "calibration": str(tmp_path / "ids.npy")}
    np.save(tmp_path / "ids.npy", np.arange(320) % zoo.VOCAB)
    for how, words in (("carve(experts=4, active=5)", "between 1 and 4"), ("carve(active=8)", "256 tokens, too few")):
        never = source("llama").__class__
        with pytest.raises(MoecError, match=words), pytest.MonkeyPatch.context() as patch:
            patch.setattr(never, "capture", lambda *_a, **_k: pytest.fail("it was captured"))
            moec.compile(source("llama"), pipeline=how, **asked)


def test_every_method_of_the_literature_runs_and_is_judged_beside_static_pruning() -> None:
    plain = "experts=4, active=3, compensate=False, refit=False"
    for more in (
        "shared=1, partition=indicator, router=analytical",
        "shared=2, partition=variation, router='mean-row'",
        "shared=0, partition=rows, router='mean-row'",
    ):
        for name in ("llama", "gpt2"):
            program, layers = carved(name, f"carve({plain}, {more})")
            assert len(moe_nodes(program)) == 2 and all(0 < layer["oracle"] <= layer["carved"] for layer in layers)
            lowered, _ = Pipeline.parse("fuse-moe").all_optional().run(program, Context())
            fused = [MoeCall(node).fused for node in moe_nodes(lowered)]
            assert fused == ["analytical" not in more] * 2  # which is no linear router
            assert error(name, program) == pytest.approx(error(name, lowered), abs=1e-4)


def test_carving_that_loses_to_static_pruning_says_so_first() -> None:
    dense, better = zoo.captured("llama", cache=False), "carve(experts=4, active=2)"
    worse = f"{better[:-1]}, shared=0, partition=random, router=random, refit=False)"
    (*_, good), (*_, bad) = (Pipeline.parse(how).run(dense, Context(calibration=text()))[1] for how in (better, worse))
    assert "caution" not in good.facts and "loses to static pruning" in bad.facts["caution"]
    (mean,) = bad.facts["beside_static_pruning"]
    assert mean["static"] < mean["carved"] and mean["oracle"] <= mean["carved"]


@pytest.mark.parametrize("active", [2, 4])
def test_taking_back_what_earlier_layers_moved_brings_the_logits_nearer(active: int) -> None:
    ids, judged = learned.texts()
    calibration = Calibration(CalibrationText("text", 0, 25), "", ids.flatten())
    dense, context = learned.captured(), Context(calibration=calibration)
    sample = text_inputs(dense.inputs, judged)
    wanted = learned.source().reference().run(sample)["logits"]

    def lost(step: float | None) -> tuple[float, list[Any]]:
        with pytest.MonkeyPatch.context() as patch:
            if step is not None:
                patch.setattr(carving, "best_step", lambda *_: Step(step, {0.0: 9.0, step: 9.0}))
            done, steps = Pipeline.parse(f"carve(experts=8, active={active})").run(dense, context)
        return apart(wanted, done.run(**sample)["logits"], True), steps[-1].facts["layers"]

    found, layers = lost(None)
    assert found < 0.93 * lost(0.0)[0] < 0.8 * lost(-1.0)[0]  # the plain fit, and one that adds to the drift
    assert layers[1]["step"] == 1.0 and 0 < layers[1]["carved"] < 0.95 * layers[1]["without step"]
    assert layers[1]["compared"] == "stream"


def test_a_network_behind_which_stands_a_norm_keeps_its_own_fit_and_says_so() -> None:
    for name, how, fitted in (
        ("gemma2", "active=2", False),
        ("gpt2", "active=2", True),
        ("llama", "active=2, refit=False", None),
        ("llama", "active=4", None),
    ):
        _, layers = carved(name, f"carve(experts=4, {how})")
        for layer in layers:
            assert ("step" in layer) == (fitted is not None) and ("without step" in layer) == bool(fitted)
            assert layer["compared"] == ("stream" if fitted else "output")
            assert fitted is not False or "residual stream" in layer["step"]


def test_without_a_text_it_is_refused_before_any_work() -> None:
    with pytest.raises(MoecError, match="calibrat"):
        Pipeline.parse("carve(experts=4, active=2)").run(zoo.captured("llama", cache=False), Context())


class Twice(nn.Module):
    """A language model that goes through one network twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(zoo.VOCAB, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.table(input_ids)
        for _ in range(2):
            x = x + self.down(torch.relu(self.up(x)))
        return {"logits": x @ self.table.weight.T}


def test_a_network_that_is_used_twice_stays() -> None:
    ids = torch.zeros(3, 7, dtype=torch.int64)
    dense = moec.capture(Twice(), {"input_ids": ids}, {"input_ids": ("batch", "sequence")})
    with pytest.raises(MoecError, match="its weights are used in several places"):
        Pipeline.parse("carve(experts=4, active=2)").run(dense, Context(calibration=text()))
