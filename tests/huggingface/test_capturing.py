"""A transformers model is captured once; its config, its code and how it is captured make another capture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moec import open_source
from moec.files import kept
from moec.huggingface import capturing
from moec.huggingface.source import HuggingFaceSource
from tests.kept_captures import count_captures
from tests.zoo import edit_config, moe_configs, save


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The captures that are really made."""
    return count_captures(capturing, monkeypatch)


def captured(folder: Path, dtype: torch.dtype = torch.float32, cache: bool = False) -> tuple[HuggingFaceSource, str]:
    source = open_source(str(folder), cache=cache)
    return source, source.capture(dtype).text()


def test_other_weights_are_the_same_capture_and_other_settings_are_not(tmp_path: Path, made: list[str]) -> None:
    folder = tmp_path / "model"
    save("llama", folder, num_hidden_layers=1)
    first = captured(folder)[1]
    tensors = load_file(folder / "model.safetensors")
    save_file({n: v * 1.5 for n, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    source = open_source(str(folder), cache=False)
    program = source.capture()
    assert len(made) == 1 and source.recalled_from and program.text() == first
    sample = source.sample({"batch": 2, "sequence": 5}, seed=1)
    want, got = source.reference()(**sample)["logits"], program.run(**sample)["logits"]
    assert float((want - got).abs().max() / want.std()) < 1e-4
    returned = program.original.form
    assert returned is not None and "CausalLMOutput" in returned.spec.type.__name__
    edit_config(folder, rms_norm_eps=0.5)
    assert captured(folder, torch.float64)[1] != first and len(made) == 2, "a number in the graph, another dtype"


def test_weights_that_are_tied_are_another_capture(tmp_path: Path, made: list[str]) -> None:
    folder = tmp_path / "model"
    save("llama", folder, num_hidden_layers=1, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    captured(folder)
    both = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] * 2}
    save_file(both, folder / "model.safetensors", metadata={"format": "pt"})
    source = open_source(str(folder), cache=False)
    program = source.capture()
    assert len(made) == 2, "only the numbers say that the two are not one"
    assert not torch.equal(
        program.weights["lm_head.weight"].load(), program.weights["model.embed_tokens.weight"].load()
    )


def test_a_model_in_memory_is_not_kept(made: list[str]) -> None:
    from tests.zoo import build

    HuggingFaceSource.from_model(build("llama", num_hidden_layers=1), cache=False).capture()
    assert made and not kept.entries()


@pytest.mark.repeats
@pytest.mark.parametrize("name", list(moe_configs()))
def test_every_architecture_with_its_cache(name: str, tmp_path: Path, made: list[str]) -> None:
    save(name, tmp_path / "model")
    (_, one), (source, two) = (captured(tmp_path / "model", cache=True) for _ in range(2))
    assert one == two and len(made) == 1 and source.recalled_from
