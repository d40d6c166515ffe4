"""A pruned model is saved as its own architecture with fewer experts, and transformers computes the same with it; or it
is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.huggingface.saving.save import save_hf
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from tests import zoo

COUNT = {
    "mixtral": "num_local_experts",
    "qwen3_moe": "num_local_experts",
    "qwen2_moe": "num_experts",
    "olmoe": "num_experts",
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_moe", "olmoe")]
PRUNE = "prune-experts(score=random)"


def of(name: str, pipeline: str) -> tuple[HuggingFaceSource, Program]:
    source = HuggingFaceSource.from_model(zoo.build(name), cache=False)
    text = Calibration(CalibrationText("text", 0, 16), "", torch.arange(512) % zoo.VOCAB)
    return source, Pipeline.parse(pipeline).run(source.capture(), Context(calibration=text))[0]


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", *SLOW])
def test_transformers_loads_it_and_says_the_same(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source, program = of(name, PRUNE)
    assert save_hf(program, tmp_path / "out", source) == name
    assert json.loads((tmp_path / "out" / "config.json").read_text())[COUNT[name]] == 6
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    sample = source.sample({"batch": 3, "sequence": 9})
    with torch.no_grad():
        said = model(**sample).logits
        before = zoo.build(name)(**sample).logits
    got = program.run(**sample)["logits"]
    assert float((got - said).abs().max() / said.std()) <= 1e-4
    assert float((got - before).abs().max() / said.std()) > 0.05, "pruning changed nothing, so that nothing is shown"


def test_it_can_be_compiled_again(tmp_path: Path) -> None:
    source, program = of("mixtral", PRUNE)
    save_hf(program, tmp_path / "out", source)
    again = open_source(str(tmp_path / "out"), cache=False).capture()
    sample = source.sample({"batch": 2, "sequence": 5})
    torch.testing.assert_close(again.run(**sample)["logits"], program.run(**sample)["logits"], rtol=1e-4, atol=1e-4)


def test_pruned_and_quantized(tmp_path: Path) -> None:
    source, program = of("mixtral", f"{PRUNE}, quantize(bits=4, group=16)")
    assert save_hf(program, tmp_path / "out", source) == "mixtral"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_local_experts"] == 6 and config["quantization_config"]["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize(
    ("name", "pipeline", "reason"),
    [
        ("gpt_oss", PRUNE, "has not been tried"),
        ("mixtral", "prune-experts(keep=0.4375, score=activation, per_layer=False)", "one number for all"),
        ("mixtral", f"{PRUNE}, skip-experts", "what skip-experts does is no weight"),
        ("mixtral", "quantize(bits=4, group=16), skip-experts", "what skip-experts does is no weight"),
    ],
)
def test_what_no_checkpoint_holds(name: str, pipeline: str, reason: str, tmp_path: Path) -> None:
    source, program = of(name, pipeline)
    with pytest.raises(MoecError, match=reason) as caught:
        save_hf(program, tmp_path / "out", source)
    assert caught.value.code == "M206" and not (tmp_path / "out").exists()
