"""Adapters of peft: merged, and compared with peft's own unmerged model; or refused with a way out that works."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.reading import peft_adapter
from moec.huggingface.source import HuggingFaceSource
from tests import zoo
from tests.reported import lora_beside_base

PARTS = {"llama": ["q_proj", "down_proj"], "mixtral": ["q_proj"]}


def adapted(name: str, folder: Path, other: Any = None, **lora: Any) -> nn.Module:
    """A zoo model in `folder/base`, its adapter in `folder/adapter`, and the two together as peft runs them; with
    another class' head on demand."""
    import peft

    base: Any = zoo.build(name)
    base.save_pretrained(folder / "base")
    base = other.from_pretrained(folder / "base") if other else base
    config = peft.LoraConfig(r=4, lora_alpha=12, **{"target_modules": PARTS[name], "task_type": "CAUSAL_LM", **lora})
    model: Any = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part, value in model.named_parameters():
            if "lora_B" in part:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return model.eval()


def difference(folder: Path, model: nn.Module, **opening: Any) -> tuple[float, float]:
    """max |d| / std of the captured program and of the reference, to what peft computes."""
    source = open_source(str(folder), cache=False, **opening)
    ids = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        wanted = model(**inputs).logits
    found = [source.capture().run(**inputs)["logits"], source.reference()(**inputs)["logits"]]
    return tuple(float((f - wanted).abs().max() / wanted.std()) for f in found)  # type: ignore[return-value]


def refused(folder: Path, code: str, **opening: Any) -> MoecError:
    with pytest.raises(MoecError) as caught:
        open_source(str(folder), cache=False, **opening).capture()
    assert caught.value.code == code
    return caught.value


def follow(error: MoecError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the command that an error names, and return the folder that it writes."""
    command = re.search(r'compile \./merged: python -c "(.*)"$', error.fix)
    assert command, error
    monkeypatch.chdir(tmp_path)
    exec(command[1], {})
    return tmp_path / "merged"


def test_beside_its_base(tmp_path: Path) -> None:
    model = lora_beside_base(tmp_path)
    assert max(difference(tmp_path, model)) <= 1e-4
    assert min(difference(tmp_path, model, leave_out=["adapter_config.json"])) > 1
    source = open_source(str(tmp_path))
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json"} <= set(source.hashes)
    assert any("rank 4 on down_proj, gate_proj, q_proj, v_proj" in note for note in source.account().notes)


@pytest.mark.parametrize("more", [{}, {"use_dora": True, "use_rslora": True, "modules_to_save": ["lm_head"]}])
def test_in_a_folder_of_its_own(tmp_path: Path, more: dict[str, Any]) -> None:
    model = adapted("llama", tmp_path, **more)
    assert max(difference(tmp_path / "adapter", model)) <= 1e-4
    assert min(difference(tmp_path / "base", model)) > 0.1


def test_on_the_parameters_of_experts(tmp_path: Path) -> None:
    model = adapted("mixtral", tmp_path, target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    assert max(difference(tmp_path / "adapter", model)) <= 1e-4
    assert min(difference(tmp_path / "base", model)) > 0.1
    source = open_source(str(tmp_path / "adapter"))
    assert len(source.capture().nodes(torch.ops.moec.experts)) == 2
    assert "experts.gate_up_proj" in source.account().notes[0]


def test_in_memory(tmp_path: Path) -> None:
    model = adapted("llama", tmp_path)
    source = HuggingFaceSource.from_model(model, cache=False)
    inputs = source.sample({"batch": 1, "sequence": 9})
    with torch.no_grad():
        wanted = model(**inputs).logits
    assert source.account().model == "LlamaForCausalLM"
    assert (source.capture().run(**inputs)["logits"] - wanted).abs().max() <= 1e-4 * wanted.std()


def test_in_memory_on_experts_it_is_to_be_merged(tmp_path: Path) -> None:
    model: Any = adapted("mixtral", tmp_path, target_parameters=["experts.gate_up_proj"])
    with pytest.raises(MoecError, match="not merged") as caught:
        HuggingFaceSource.from_model(model, cache=False).capture()
    assert "merge_and_unload()" in caught.value.fix
    program = HuggingFaceSource.from_model(model.merge_and_unload(), cache=False).capture()
    assert len(program.nodes(torch.ops.moec.experts)) == 2


def test_too_large_to_merge_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama", tmp_path)
    monkeypatch.setattr(peft_adapter, "total_bytes", lambda: 1000)
    merged = follow(refused(tmp_path / "adapter", "M217"), tmp_path, monkeypatch)
    assert max(difference(merged, model)) <= 1e-4


def test_of_another_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    adapted("llama", tmp_path, transformers.LlamaForSequenceClassification, task_type="SEQ_CLS")
    error = refused(tmp_path / "adapter", "M217")
    assert "SEQ_CLS" in error.what and "LlamaForCausalLM" in error.what
    source = open_source(str(follow(error, tmp_path, monkeypatch)))
    assert source.account().model == "LlamaForSequenceClassification"


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    import peft

    base = zoo.build("llama")
    base.save_pretrained(tmp_path)  # type: ignore[operator]
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model: Any = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path)
    error = refused(tmp_path, "M217")
    assert "PROMPT_TUNING" in error.what
    with pytest.raises(MoecError, match="not to weights"):
        HuggingFaceSource.from_model(model)
    flag = error.fix.split("--leave-out ")[1]
    assert max(difference(tmp_path, zoo.build("llama"), leave_out=[flag])) <= 1e-4


def test_tensors_that_have_no_place(tmp_path: Path) -> None:
    adapted("llama", tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name.replace("layers.0", "layers.7"): tensors[name].clone()}, file, {"format": "pt"})
    assert "layers.7" in refused(tmp_path / "adapter", "M217").what
    save_file({k: v for k, v in tensors.items() if k != name}, file, {"format": "pt"})
    assert "layers.0" in refused(tmp_path / "adapter", "M217").what


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_a_base_that_is_not_here(tmp_path: Path) -> None:
    adapted("llama", tmp_path)
    error = refused(edit(tmp_path / "adapter", base_model_name_or_path="nobody/none"), "M204")
    assert "hf download nobody/none" in error.fix


def test_code_that_an_adapter_asks_for_is_not_imported(tmp_path: Path) -> None:
    adapted("llama", tmp_path)
    refused(edit(tmp_path / "adapter", megatron_config={"x": 1}, megatron_core="antigravity"), "M217")
    assert "antigravity" not in sys.modules


def test_a_pickle_and_a_missing_file(tmp_path: Path) -> None:
    adapted("llama", tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    assert "adapter_model.safetensors" in refused(tmp_path / "adapter", "M204").what
    torch.save(tensors, tmp_path / "adapter" / "adapter_model.bin")
    refused(tmp_path / "adapter", "M209")
    open_source(str(tmp_path / "adapter"), allow_pickle=True, cache=False).account()


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted("llama", tmp_path)
    monkeypatch.setattr(peft_adapter, "find_spec", lambda name: None)
    error = refused(tmp_path / "adapter", "M301")
    assert "moec[peft]" in error.fix and error.exit_code == 3


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    assert "adapter_config.json" in refused(tmp_path, "M204").where


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_out_of_the_folder_are_not_followed(name: str, tmp_path: Path) -> None:
    adapted("llama", tmp_path)
    (tmp_path / "adapter" / name).rename(tmp_path / name)
    (tmp_path / "adapter" / name).symlink_to(tmp_path / name)
    assert f"{name} is a link out" in refused(tmp_path / "adapter", "M204").what
