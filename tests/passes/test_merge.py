"""`merge`: models that are equal give their function exactly, different ones a mixture that tells their texts apart;
what does not fit each other is refused."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moec
from moec.errors import MoecError
from moec.huggingface.source import HuggingFaceSource
from moec.passes.merge import Merge
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from tests import zoo

WINDOW = 32
SAMPLE = {"input_ids": torch.arange(3, 21).view(2, 9), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}
NAMES = ("code", "law")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two models of its form, one of them under a second name, and one of another vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", *NAMES)):
        zoo.save("llama", folder / name, seed=seed)
    shutil.copytree(folder / "code", folder / "again")
    zoo.save("llama", folder / "wider", vocab_size=zoo.VOCAB + 8)
    zoo.save("llama", folder / "steeper", rms_norm_eps=1e-3)
    return folder


def part(name: str, low: int, high: int, tokens: int = 1024, window: int = WINDOW) -> Calibration:
    ids = torch.randint(low, high, (tokens,), generator=torch.Generator().manual_seed(low))
    return Calibration(CalibrationText(name, 0, window), "", ids)


def texts(**parts: Calibration) -> Calibration:
    tokens = torch.cat([p.tokens for p in parts.values()])
    return Calibration(CalibrationText("all", 0, WINDOW), "", tokens, parts=parts)


TEXTS = texts(code=part("code", 3, 50), law=part("law", 45, 96))  # some tokens are in both


@cache
def captured(folder: Path) -> Program:
    return moec.capture(folder, cache=False)


@cache
def merged(models: Path, names: tuple[str, ...], how: str = "") -> tuple[Program, Any]:
    """Made once; not to be changed."""
    return merge(models, names, how, TEXTS)


def merge(models: Path, names: tuple[str, ...], how: str, calibration: Calibration) -> tuple[Program, Any]:
    sources = ", ".join(str(models / name) for name in names)
    base = captured(models / "base")
    program, steps = Pipeline.parse(f"merge(sources=[{sources}]{how})").run(base, Context(calibration=calibration))
    return program, steps[0].facts


def logits(program: Program) -> Tensor:
    return program.run(**SAMPLE)["logits"]


@pytest.mark.parametrize("how", ["", pytest.param(", rest=average, top_k=2", marks=pytest.mark.repeats)])
def test_equal_models_are_their_function_and_different_ones_are_not(models: Path, how: str) -> None:
    same = texts(code=TEXTS.parts["code"], again=TEXTS.parts["law"])
    program, _ = merge(models, ("code", "again"), how, same)
    alone = logits(captured(models / "code"))
    assert float((logits(program) - alone).abs().max()) < 1e-5 and len(moe_nodes(program)) == 2
    own = captured(models / "code").weights
    kept = [n for n in program.weights if n in own]
    assert kept and all(torch.equal(program.weights[n].load(), own[n].load()) for n in kept)
    other, _ = merged(models, NAMES)
    assert float((logits(other) - alone).abs().max()) > 0.01


def test_routers_tell_the_texts_apart_and_the_best_rest_is_taken(models: Path) -> None:
    _, facts = merged(models, NAMES)
    assert facts["experts"] == ["code", "law"] and len(facts["layers"]) == 2
    assert all(layer["right"] > 0.8 for layer in facts["layers"])  # by chance it is a half
    figures = {way: sum(each) for way, each in facts["rest"]["departures"].items()}
    assert facts["rest"]["way"] == min(figures, key=lambda way: figures[way])
    assert len(figures) == 3 and min(figures.values()) < 0.95 * max(figures.values())  # the choice says something


def test_each_expert_is_its_models_network_or_near_it(models: Path) -> None:
    own = captured(models / "law").weights["model.layers.1.mlp.down_proj.weight"].load()
    name = "model.layers.1.mlp.experts.w_out"
    whole, _ = merged(models, NAMES, ", rest=base, refit=False")
    near, _ = merged(models, NAMES, ", rest=base, rank=3")
    assert torch.equal(whole.weights[name].load()[1], own)
    base = captured(models / "base").weights["model.layers.1.mlp.down_proj.weight"].load()
    difference = near.weights[name].load()[1] - base
    assert int(torch.linalg.matrix_rank(difference, rtol=1e-4)) == 3 < int(torch.linalg.matrix_rank(own - base))
    assert float((difference - (own - base)).norm()) < float((own - base).norm())


def test_its_plan_has_the_same_form_and_opens_nothing(models: Path) -> None:
    program, _ = merged(models, NAMES)
    plan = Merge(sources=("nowhere/code", "nowhere/law")).plan(captured(models / "base"), Context())
    assert plan.least == plan.most == 2
    assert {n: w.shape for n, w in plan.program.weights.items()} == {n: w.shape for n, w in program.weights.items()}


@pytest.mark.parametrize(
    ("names", "how", "words"),
    [
        (("code",), "", "two models at least"),
        (("code", "code"), "", "two models are called code"),
        (NAMES, ", top_k=3", "between 1 and 2"),
        (NAMES, ", rest=mean", "base, average, regression"),
        (NAMES, ", rank=-1", "no rank"),
        (NAMES, ", ridge=0", "above 0"),
        (("code", "again"), "", "no text of again"),
        (("code", "wider"), "", "no text of wider"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_three_lines(
    models: Path, names: tuple[str, ...], how: str, words: str
) -> None:
    with pytest.raises(MoecError) as caught:
        merge(models, names, how, TEXTS)
    assert words in str(caught.value) and str(caught.value).count("\n") == 2 and caught.value.code == "M203"


@pytest.mark.parametrize(
    ("other", "text", "words"),
    [
        ("wider", part("wider", 45, 96), "fine-tunes of one model"),
        ("steeper", part("steeper", 45, 96), "computes otherwise"),
        ("law", part("law", 45, 96, 16, 8), "the text has 8 tokens to fit on, and a router's row 32 numbers"),
        ("law", part("law", 45, 96, WINDOW), "one window"),
    ],
)
def test_models_and_texts_that_do_not_fit_are_refused(models: Path, other: str, text: Calibration, words: str) -> None:
    calibration = texts(**{"code": TEXTS.parts["code"], other: text})
    with pytest.raises(MoecError, match=words) as caught:
        merge(models, (other, "code"), "", calibration)
    assert str(caught.value).count("\n") == 2 and caught.value.code == "M203"


@pytest.mark.parametrize("change", ["name", "operator", "shape", "more"])
def test_a_model_whose_graph_is_another_is_refused(models: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, capture = captured(models / "base"), HuggingFaceSource.capture

    def other(*given: Any, **named: Any) -> Program:
        program = capture(*given, **named)
        product = program.nodes(torch.ops.aten.mul.Tensor)[-1]
        if change == "name":
            product._rename("product")
        elif change == "operator":
            product.target = torch.ops.aten.div.Tensor
        elif change == "shape":
            product.meta["val"] = product.meta["val"][..., None]
        else:
            with program.graph.inserting_after(next(iter(program.graph.nodes))):
                program.read_weight(next(iter(program.weights)))
        return program

    assert base.nodes(torch.ops.aten.mul.Tensor)
    monkeypatch.setattr(HuggingFaceSource, "capture", other)
    with pytest.raises(MoecError, match="computes otherwise than the base: ") as caught:
        merge(models, NAMES, "", TEXTS)
    assert str(caught.value).count("\n") == 2 and caught.value.code == "M203"


def test_settings_and_texts_are_refused_before_any_model_is_opened() -> None:
    with pytest.raises(MoecError, match="two models at least") as caught:
        Pipeline((Merge(sources="code"),)).check(calibrated=True)
    assert caught.value.code == "M203"
    item = Merge(sources=("nowhere/code", "nowhere/law"))
    item.check_calibration(TEXTS)
    with pytest.raises(MoecError, match="names no text of law"):
        item.check_calibration(texts(code=TEXTS.parts["code"]))


def test_it_comes_first(models: Path) -> None:
    with pytest.raises(MoecError, match="put merge first"):
        Pipeline.parse("quantize(bits=8), merge(sources=[code/, law/])").check(calibrated=True)
