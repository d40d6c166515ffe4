"""A config of wrong types and sizes is refused before anything is built or memory is taken, with the entry's name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from moec.errors import MoecError
from moec.execution.memory import peak_rss_bytes, reset_peak, rss_bytes
from moec.huggingface.reading import config_sizes
from moec.huggingface.reading.folder import ModelFolder
from tests.zoo import edit_config, save


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def refusal(model: Path, code: str = "M204") -> MoecError:
    with pytest.raises(MoecError) as caught:
        ModelFolder(str(model)).captured(torch.float32)
    assert caught.value.code == code, caught.value
    return caught.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [1]),
        ("model_type", 7),
        ("auto_map", []),
        ("quantization_config", "gptq"),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 10**7),
        ("hidden_size", 2**60),
    ],
)
def test_wrong_entries_are_named(name: str, value: Any, model: Path) -> None:
    edit_config(model, **{name: value})
    assert name in refusal(model).what


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 0},
        {"hidden_size": "32"},
        {"hidden_size": 10**12},
        {"hidden_size": [], "head_dim": None},
        {"num_attention_heads": 0},
        {"num_hidden_layers": 2000},
        {"hidden_act": "no-such"},
        {"vocab_size": -1},
        {"rope_parameters": {"rope_type": "x"}},
    ],
    ids=str,
)
def test_what_transformers_raises_is_no_bug_of_ours(changes: dict[str, Any], model: Path) -> None:
    edit_config(model, **changes)
    with pytest.raises(MoecError) as caught:
        ModelFolder(str(model)).captured(torch.float32)
    assert caught.value.code in ("M204", "M205")


def test_a_model_that_the_files_hardly_hold_is_not_traced(model: Path) -> None:
    edit_config(model, num_hidden_layers=32)
    with pytest.raises(MoecError, match="no file holds") as caught:
        ModelFolder(str(model))
    assert caught.value.code == "M205"


def test_shapes_that_differ_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """BERT numbers its positions, here in 8 TiB."""
    model = Path(save("bert", tmp_path / "model"))
    edit_config(model, max_position_embeddings=2**40)
    reset_peak()
    before = rss_bytes()
    with pytest.raises(MoecError, match="the model needs") as caught:
        ModelFolder(str(model))
    assert caught.value.code == "M205" and peak_rss_bytes() - before < 2**28


def test_tables_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save("bert", tmp_path / "model")
    assert ModelFolder(model).config.max_position_embeddings == 256
    monkeypatch.setattr(config_sizes, "total_bytes", lambda: 4 * 2 * 256 * 8 - 1)  # positions and types, int64
    with pytest.raises(MoecError, match="would compute tables"):
        ModelFolder(model)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{" * 10**5, b"[" * 10**5, b"\xff", b'{"a": 1', b'{"hidden_size": 1e999}']
)
def test_what_is_no_json_object(content: bytes, model: Path) -> None:
    (model / "config.json").write_bytes(content)
    error = refusal(model, "M204" if b"1e999" not in content else "M206")
    assert str(model) in error.where


def test_a_pipe_is_no_config(model: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    assert "pipe" in refusal(model).what


def test_a_link_out_of_the_folder_is_not_followed(model: Path, tmp_path: Path) -> None:
    shutil.move(model / "config.json", tmp_path / "elsewhere.json")
    (model / "config.json").symlink_to(tmp_path / "elsewhere.json")
    assert "link" in refusal(model).what


def test_right_models_are_opened(model: Path) -> None:
    assert json.loads((model / "config.json").read_text())["model_type"] == "llama"
    assert ModelFolder(str(model)).captured(torch.float32)[1]


def test_widths_are_no_counts_of_layers() -> None:
    config_sizes.check_config({"vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 65536}, Path("c"))
    with pytest.raises(MoecError, match="num_hidden_layers"):
        config_sizes.check_config({"num_hidden_layers": 262144}, Path("c"))
