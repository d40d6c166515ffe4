"""A model with fewer experts a token is its architecture with another number in its config, what scales its outputs
in the weights; transformers computes the same with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moec.errors import MoecError
from moec.huggingface.saving.save import save_hf
from moec.huggingface.saving.top_k import with_scales_in_weights
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.pipeline import Pipeline
from moec.program.dialect_call import ROUTE, RouteCall
from tests import zoo
from tests.huggingface.saving.test_carved import SIZES, TOLERANCE, apart, by_transformers, carved, context, source

MORE = [pytest.param(n, marks=pytest.mark.repeats) for n in ("mixtral", "qwen3_moe", "olmoe", "glm4_moe")]


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3", *MORE])
def test_transformers_says_the_same(name: str, tmp_path: Path) -> None:
    program = carved(name, "set-top-k(1)")
    assert all(RouteCall(n).routing.scale != 1 for n in program.nodes(ROUTE))  # there is something to fold
    assert save_hf(program, tmp_path / "out", source(name)) == name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    combined = {RouteCall(n).routing.combine for n in program.nodes(ROUTE)}
    assert config["num_experts_per_tok"] == 1 and {config.get("norm_topk_prob", True)} == {
        c != "scores" for c in combined
    }
    said, sample = by_transformers(tmp_path / "out", name), source(name).sample(SIZES)
    assert apart(said, program.run(**sample)["logits"]) < TOLERANCE
    unscaled = carved(name, "set-top-k(1, rescale=False)").run(**sample)["logits"]
    assert apart(said, unscaled) > 5 * TOLERANCE  # a scale that is left out is seen


def test_a_model_trained_with_all_experts_active(tmp_path: Path) -> None:
    every = HuggingFaceSource.from_model(zoo.build("olmoe", num_experts_per_tok=8), cache=False)
    program, _ = Pipeline.parse("set-top-k(2)").run(every.capture(), context())
    save_hf(program, tmp_path / "out", every)
    said, sample = by_transformers(tmp_path / "out", "olmoe"), source("olmoe").sample(SIZES)
    assert apart(said, program.run(**sample)["logits"]) < TOLERANCE


def test_packed_weights_have_it_in_their_scales(tmp_path: Path) -> None:
    program = carved("mixtral", "set-top-k(1), quantize(bits=8, group=16)")
    assert save_hf(program, tmp_path / "out", source("mixtral")) == "mixtral"
    said = by_transformers(tmp_path / "out", "mixtral")
    assert apart(said, program.run(**source("mixtral").sample(SIZES))["logits"]) < TOLERANCE


def test_the_program_itself_is_not_changed() -> None:
    program = carved("qwen2_moe", "set-top-k(1)")
    digest = program.digest()
    folded = with_scales_in_weights(program, source("qwen2_moe").origin.template.config)
    assert program.digest() == digest != folded.digest()
    assert all(RouteCall(n).routing.scale == 1 for n in folded.nodes(ROUTE))
    sample = source("qwen2_moe").sample(SIZES)
    assert apart(folded.run(**sample)["logits"], program.run(**sample)["logits"]) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("qwen2_moe", "set-top-k(0.5)", "one number for all of them"),
        ("gpt_oss", "set-top-k(1)", "has not been tried"),
    ],
)
def test_what_no_config_says_is_refused_in_three_lines(name: str, how: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        save_hf(carved(name, how), tmp_path / "out", source(name))
    assert caught.value.code == "M206" and words in caught.value.what and str(caught.value).count("\n") == 2
    assert not (tmp_path / "out").exists()


def test_another_number_in_the_config_is_the_way_out(tmp_path: Path) -> None:
    """What a refusal advises for an architecture that was not tried."""
    from transformers import AutoModelForCausalLM

    zoo.save("gpt_oss", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text()) | {"num_experts_per_tok": 1}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    sample = source("gpt_oss").sample(SIZES)
    with torch.no_grad():
        said = model(**sample).logits
    assert apart(said, carved("gpt_oss", "set-top-k(1, rescale=False)").run(**sample)["logits"]) < TOLERANCE
