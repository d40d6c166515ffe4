"""`add-expert`: a mixture gets one more expert, and what it had is there as before, bit for bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import moec
from moec.errors import MoecError
from moec.passes.add_expert import AddExpert
from moec.pipeline.calibration import Calibration
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from tests import zoo
from tests.passes.test_merge import part, texts

OLD = {"code": part("code", 3, 35), "law": part("law", 30, 60)}
NEW = texts(med=part("med", 60, 96), **OLD)
SAMPLES = {name: {"input_ids": t.tokens[:64].view(2, 32)} for name, t in NEW.parts.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two fine-tunes as `merge` saves it, a third fine-tune, and models that do not fit."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "code", "law", "med")):
        zoo.save("llama", folder / name, seed=seed)
    how = f"merge(sources=[{folder / 'code'}, {folder / 'law'}], rest=average)"
    base = moec.capture(folder / "base", cache=False)
    merged, _ = Pipeline.parse(how).run(base, Context(calibration=texts(**OLD)))
    moec.save_hf(merged, folder / "merged")
    zoo.save("llama", folder / "deeper", num_hidden_layers=3)
    zoo.save("llama", folder / "wider", intermediate_size=64)
    zoo.save("llama", folder / "other", vocab_size=zoo.VOCAB, hidden_act="gelu")
    zoo.save("olmoe", folder / "scores")
    return folder


@cache
def captured(folder: Path) -> Program:
    return moec.capture(folder, cache=False)


def add(
    models: Path, name: str, how: str = "", calibration: Calibration = NEW, to: str = "merged"
) -> tuple[Program, Any]:
    pipeline = Pipeline.parse(f"add-expert('{models / name}'{how})")
    program, steps = pipeline.run(captured(models / to), Context(calibration=calibration))
    return program, steps[-1].facts


@cache
def added(models: Path) -> tuple[Program, Any]:
    """Made once; not to be changed."""
    return add(models, "med")


def logits(program: Program, name: str) -> Tensor:
    sample = SAMPLES[name]
    return program.run(**sample, attention_mask=torch.ones_like(sample["input_ids"]))["logits"]


def test_what_was_there_stays_bit_for_bit(models: Path) -> None:
    program, _ = added(models)
    before = captured(models / "merged").weights
    assert program.weights.keys() == before.keys()
    grown = [n for n, w in program.weights.items() if w.shape != before[n].shape]
    assert len(grown) == 2 * 3 and [MoeCall(node).experts for node in moe_nodes(program)] == [3, 3]
    for name, weight in program.weights.items():
        old, new = before[name].load(), weight.load()
        assert weight.dtype == before[name].dtype and torch.equal(new[: len(old)], old)
        assert len(new) == len(old) + (name in grown)


def test_texts_go_to_their_experts_and_others_are_said_as_before(models: Path) -> None:
    program, facts = added(models)
    assert facts["expert"] == {"name": "med", "number": 2} and len(facts["layers"]) == 2
    assert all(layer["right"] > 0.8 and layer["kept"] > 0.8 for layer in facts["layers"])
    mixture, med = captured(models / "merged"), captured(models / "med")
    near = {name: float((logits(program, name) - logits(mixture, name)).square().mean()) for name in SAMPLES}
    assert near["code"] < 0.5 * near["med"] and near["law"] < 0.5 * near["med"]
    own = logits(med, "med")
    apart = [float((logits(each, "med") - own).square().mean()) for each in (program, mixture)]
    assert apart[0] < apart[1]  # though attention and embeddings are the mixture's


def test_a_fit_of_the_new_last_matrix_helps_and_touches_no_other(models: Path) -> None:
    fitted, facts = added(models)
    plain, without = add(models, "med", ", refit=False")
    own = captured(models / "med").weights["model.layers.1.mlp.down_proj.weight"].load()
    name = "model.layers.1.mlp.experts.down_proj"
    assert torch.equal(plain.weights[name].load()[2], own) and not torch.equal(fitted.weights[name].load()[2], own)
    assert all("step" not in layer for layer in without["layers"])
    assert all(layer["step"] in (0.5, 1.0) and layer["stream"] < layer["without step"] for layer in facts["layers"])
    wanted = logits(captured(models / "med"), "med")
    lost = [float((logits(each, "med") - wanted).square().mean()) for each in (fitted, plain)]
    assert lost[0] < lost[1]


def test_it_is_saved_and_loaded_and_can_grow_again(models: Path, tmp_path: Path) -> None:
    program, _ = added(models)
    moec.save_hf(program, tmp_path / "three")
    again = captured(tmp_path / "three")
    for name in SAMPLES:
        assert torch.allclose(logits(again, name), logits(program, name), atol=1e-5)
    more, _ = add(
        models, "base", ", refit=False", texts(base=part("base", 90, 96), **NEW.parts), str(tmp_path / "three")
    )
    assert [MoeCall(node).experts for node in moe_nodes(more)] == [4, 4]


def test_its_plan_has_the_same_form_and_opens_nothing(models: Path) -> None:
    program, _ = added(models)
    plan = Pipeline((AddExpert(source="nowhere/med"),)).plan(captured(models / "merged"))[-1]
    assert plan.least == plan.most == 2
    assert {n: w.shape for n, w in plan.program.weights.items()} == {n: w.shape for n, w in program.weights.items()}


@pytest.mark.parametrize(
    ("name", "how", "to", "words"),
    [
        ("deeper", "", "merged", "3 feed-forward networks, and the mixture 2 layers"),
        ("wider", "", "merged", r"experts have w_in \[96, 32\], w_out \[32, 48\], and the network w_in \[128, 32\]"),
        ("other", "", "merged", "another activation"),
        ("med", "", "scores", "scores of all experts"),
        ("med", ", ridge=0", "merged", "above 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_three_lines(models: Path, name: str, how: str, to: str, words: str) -> None:
    with pytest.raises(MoecError, match=words) as caught:
        add(models, name, how, texts(**{name: NEW.parts["med"], **OLD}), to)
    assert str(caught.value).count("\n") == 2 and caught.value.code == "M203"


def test_settings_and_texts_are_refused_before_any_model_is_opened() -> None:
    item = AddExpert(source="nowhere/med")
    item.check_calibration(NEW)
    for calibration, words in ((texts(**OLD), "no text of med"), (texts(med=NEW.parts["med"]), "the mixture is for")):
        with pytest.raises(MoecError, match=words) as caught:
            item.check_calibration(calibration)
        assert str(caught.value).count("\n") == 2
    with pytest.raises(MoecError, match="no model is named"):
        AddExpert().check_settings()
    with pytest.raises(MoecError, match="put add-expert first"):
        Pipeline.parse("quantize(bits=8), add-expert('med/')").check(calibrated=True)
