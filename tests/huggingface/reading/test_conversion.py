"""Lazy conversion against `from_pretrained`, weight by weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.reading.folder import ModelFolder
from tests import zoo
from tests.huggingface.conftest import Saved


def assert_as_from_pretrained(path: Path, dtype: torch.dtype = torch.float32) -> None:
    folder = ModelFolder(str(path))
    _, weights = folder.captured(dtype)
    wanted = folder.model_class.from_pretrained(path, dtype=dtype).state_dict()
    assert sorted(weights) == sorted(wanted)
    for name, value in wanted.items():
        assert weights[name].dtype == value.dtype, name
        assert torch.equal(weights[name].load(), value), name
        if value.dim():
            middle = len(value) // 2
            assert torch.equal(weights[name].read(middle, middle + 1), value[middle : middle + 1]), name


@pytest.mark.parametrize("name", [*zoo.moe_configs(), *zoo.dense_configs()])
def test_every_weight_equals_from_pretrained(name: str, saved: Saved) -> None:
    assert_as_from_pretrained(saved(name))


@pytest.mark.parametrize("name", ["deepseek_v3", "llama"])
def test_half_precision(name: str, saved: Saved) -> None:
    assert_as_from_pretrained(saved(name), torch.float16)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_stacks_of_experts_can_be_read_expert_by_expert(name: str, saved: Saved) -> None:
    stored = load_file(saved(name) / "model.safetensors")
    assert any(".experts.3." in key for key in stored), "the checkpoint should hold one tensor an expert"
    _, weights = ModelFolder(str(saved(name))).captured(torch.float32)
    stacks = {k: w for k, w in weights.items() if k.endswith(("gate_up_proj", "down_proj"))}
    assert stacks and not any(w.atomic for w in stacks.values())
    assert all("stack(" in w.origin for w in stacks.values())


def test_a_weight_of_another_shape_is_refused(copied: Saved) -> None:
    folder = copied("llama")
    zoo.edit_config(folder, intermediate_size=56)
    with pytest.raises(MoecError) as error:
        open_source(str(folder)).capture()
    assert error.value.code == "M205" and "mlp" in error.value.what


def test_a_weight_that_is_missing_is_named(copied: Saved) -> None:
    path = copied("mixtral") / "model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if "layers.1.self_attn.q_proj" not in k}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(MoecError) as error:
        open_source(str(path.parent)).capture()
    assert error.value.code == "M205" and "model.layers.1.self_attn.q_proj.weight" in error.value.what


def test_prefixes_of_the_base_model(copied: Saved, tmp_path: Path) -> None:
    whole = tmp_path / "classifier"
    config = zoo.dense_configs()["bert"]
    model = transformers.BertForSequenceClassification(config)
    zoo.randomize(model, 3)
    model.save_pretrained(whole)
    zoo.edit_config(whole, architectures=["BertModel"])
    assert_as_from_pretrained(whole)  # "bert." is taken away
    bare = copied("bert")
    zoo.edit_config(bare, architectures=["BertForMaskedLM"])
    _, weights = ModelFolder(str(bare)).captured(torch.float32)
    assert "bert.encoder.layer.0.output.dense.weight" in weights  # and put there


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_tied_names_that_are_both_stored(offset: float, copied: Saved) -> None:
    path = copied("llama") / "model.safetensors"
    stored = load_file(path)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"] + offset
    save_file(stored, path, metadata={"format": "pt"})
    assert_as_from_pretrained(path.parent)
    _, weights = ModelFolder(str(path.parent)).captured(torch.float32)
    assert (weights["lm_head.weight"] is weights["model.embed_tokens.weight"]) == (offset == 0.0)
