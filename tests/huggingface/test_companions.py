"""Files beside an engine: what a client needs, byte by byte, and nothing else; facts from configs and signatures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.frontend.source import Source
from moec.layouts import ModelFacts
from tests.huggingface.conftest import Saved
from tests.moe_module import MoeModel, source_of
from tests.zoo import build, edit_config


def written(source: Source, folder: Path) -> list[str]:
    folder.mkdir()
    source.write_companions(folder)
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_files_of_a_folder_are_copied_but_no_weights_pickles_or_code(copied: Saved, tmp_path: Path) -> None:
    model = copied("bert")
    wanted = {
        "tokenizer.json",
        "vocab.txt",
        "modules.json",
        "1_Pooling/config.json",
        "additional_chat_templates/tools.jinja",
        "LICENSE",
        "spiece.model",
    }
    others = {
        "tokenization_bert.py",
        "tokenizer.pkl",
        "tokenizer.bin",
        "2_Dense/model.safetensors",
        "1_Pooling/notes.txt",
        "README.md",
    }
    for name in wanted | others:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(name.encode() + b"\x00\xff")
    found = written(open_source(model), tmp_path / "engine")
    assert set(found) == wanted | {"config.json"}
    assert all((tmp_path / "engine" / n).read_bytes() == (model / n).read_bytes() for n in found)


def test_links_out_of_the_folder_and_pipes_are_left_alone(copied: Saved, tmp_path: Path) -> None:
    model, secret = copied("bert"), tmp_path / "secret"
    secret.mkdir()
    (secret / "passwd").write_text("root:x:0:0")
    (secret / "extra.jinja").write_text("secret")
    (model / "vocab.txt").symlink_to(secret / "passwd")
    (model / "additional_chat_templates").symlink_to(secret)
    (model / "LICENSE").symlink_to("config.json")
    os.mkfifo(model / "tokenizer.json")
    assert set(written(open_source(model), tmp_path / "engine")) == {"config.json", "LICENSE"}


def test_a_model_in_memory_writes_its_configs(tmp_path: Path) -> None:
    decoder = build("llama")
    decoder.generation_config.repetition_penalty = 1.25  # type: ignore[union-attr]
    assert written(open_source(decoder), tmp_path / "llama") == ["config.json", "generation_config.json"]
    assert json.loads((tmp_path / "llama/generation_config.json").read_text())["repetition_penalty"] == 1.25
    assert open_source(decoder).facts().sampling["repetition_penalty"] == 1.25
    assert written(open_source(build("bert")), tmp_path / "bert") == ["config.json"]


def test_a_module_has_no_files_and_only_a_name(tmp_path: Path) -> None:
    source = source_of(MoeModel().eval())
    assert written(source, tmp_path / "engine") == []
    assert source.facts() == ModelFacts(source.facts().name) and source.facts().name


def test_facts_are_those_of_the_signature_and_the_generation_config(copied: Saved) -> None:
    model = copied("qwen3_moe")
    (model / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 7], "pad_token_id": 5, "temperature": 0.6, "top_k": 20})
    )
    facts = open_source(model).facts()
    assert (facts.name, facts.model_type, facts.vocabulary, facts.hidden, facts.heads, facts.layers) == (
        "qwen3_moe",
        "qwen3_moe",
        96,
        32,
        4,
        2,
    )
    assert (facts.key_value_heads, facts.head_width) == (2, 8)
    assert (facts.bos, facts.eos, facts.pad, dict(facts.sampling)) == (1, (2, 7), 5, {"temperature": 0.6, "top_k": 20})


def test_without_a_generation_config_the_models_own_tokens_hold(copied: Saved) -> None:
    model = copied("qwen3_moe")
    (model / "generation_config.json").unlink()
    edit_config(model, eos_token_id=[3, 4], bos_token_id=None, pad_token_id=None)
    facts = open_source(model).facts()
    assert (facts.bos, facts.eos, facts.pad, dict(facts.sampling)) == (None, (3, 4), None, {})


def test_a_broken_generation_config_is_refused(copied: Saved) -> None:
    model = copied("qwen3_moe")
    (model / "generation_config.json").write_text("{")
    with pytest.raises(MoecError, match="generation_config") as caught:
        open_source(model).facts()
    assert caught.value.code == "M204"


def test_encoders_have_no_cache(saved: Saved) -> None:
    for name in ("bert", "vit"):
        facts = open_source(saved(name)).facts()
        assert (facts.key_value_heads, facts.head_width, facts.layers) == (0, 0, 2)
