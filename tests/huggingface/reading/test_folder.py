"""Folders that cannot be opened say why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import moec
from moec import open_source
from moec.errors import MoecError
from tests import zoo
from tests.huggingface.conftest import Saved
from tests.reported import CASES


def refused(path: object) -> MoecError:
    with pytest.raises(MoecError) as error:
        open_source(str(path))
    return error.value


def test_a_hub_id_that_is_not_cached() -> None:
    error = refused("nobody/no-such-model")
    assert error.code == "M204" and "cache" in error.what and error.exit_code == 2


def test_what_comes_from_the_cache_of_a_hub_says_so(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(saved("llama"), home / "snapshots" / "1f")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("1f")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.copytree(saved("llama"), tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    assert [open_source(text).account().hub for text in ("org/tiny", "models/tiny")] == ["org/tiny", ""]


def test_a_folder_without_config(tmp_path: Path) -> None:
    assert refused(tmp_path).code == "M204"


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_object(text: str, copied: Saved) -> None:
    folder = copied("llama")
    (folder / "config.json").write_text(text)
    assert refused(folder).code == "M204"


def test_an_unknown_architecture_with_near_names(copied: Saved) -> None:
    folder = copied("llama")
    zoo.edit_config(folder, model_type="lama")
    error = refused(folder)
    assert error.code == "M206" and "llama" in error.fix


def test_an_unknown_class(copied: Saved) -> None:
    folder = copied("llama")
    zoo.edit_config(folder, architectures=["LlamaForNothing"])
    error = refused(folder)
    assert error.code == "M206" and "LlamaForNothing" in error.what


def test_no_class_falls_back_to_the_bare_model(copied: Saved) -> None:
    folder = copied("bert")
    zoo.edit_config(folder, architectures=None)
    source = open_source(str(folder))
    assert source.capture().outputs == ("last_hidden_state", "pooler_output")


def with_code(folder: Path) -> Path:
    """A llama whose classes come with it."""
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    zoo.edit_config(
        folder,
        model_type="own",
        architectures=["OwnModel"],
        auto_map={"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"},
    )
    return folder


def test_code_from_the_folder_runs_only_when_told_to(copied: Saved) -> None:
    folder = with_code(copied("llama"))
    error = refused(folder)
    assert error.code == "M209" and "--trust-remote-code" in error.fix
    source = open_source(str(folder), trust_remote_code=True, cache=False)
    inputs = source.sample({"batch": 2, "sequence": 5})
    found, wanted = source.capture().run(**inputs)["logits"], source.reference()(**inputs)["logits"]
    assert (found - wanted).abs().max() <= 1e-4 * wanted.std()


def test_an_encoder_without_text_or_pixels(tmp_path: Path) -> None:
    import transformers

    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path)
    error = refused(tmp_path)
    assert error.code == "M206" and "input_values" in error.what


def test_an_engine_of_code_from_the_folder_is_of_that_code(copied: Saved, tmp_path: Path) -> None:
    folder, mark = with_code(copied("llama")), tmp_path / "mark"
    moec.compile(folder, out=tmp_path / "engine", trust_remote_code=True)
    code = folder / "modeling_own.py"
    code.write_text(code.read_text() + f"open({str(mark)!r}, 'w').close()\n")
    with pytest.raises(MoecError, match=r"changed since: modeling_own\.py") as caught:
        moec.verify(tmp_path / "engine", trust_remote_code=True)
    assert caught.value.code == "M106" and not mark.exists()


@pytest.mark.parametrize("name", ["generation_config.json", "preprocessor_config.json"])
def test_links_out_of_the_folder_are_not_followed(name: str, copied: Saved, tmp_path: Path) -> None:
    folder = copied("llama")
    if name.startswith("pre"):  # which says how large a detector's images are
        folder = tmp_path / "detr"
        CASES["detr"].save(folder)
    (tmp_path / name).write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / name)
    error = refused(folder)
    assert error.code == "M204" and f"{name} is a link out" in error.what


@pytest.mark.parametrize("name", ["preprocessor_config.json", "adapter_model.bin"])
def test_what_decides_the_model_must_not_change_meanwhile(name: str, copied: Saved) -> None:
    folder = copied("bert")
    (folder / name).write_text("{}")
    source = open_source(str(folder))
    (folder / name).write_text("[]")
    with pytest.raises(MoecError) as caught:
        source.require_unchanged()
    assert caught.value.code == "M106"


def test_the_config_alone_is_no_model_and_the_way_out_is_its_folder(tmp_path: Path) -> None:
    folder = Path(zoo.save("mixtral", tmp_path))
    with pytest.raises(MoecError, match="is a file") as caught:
        open_source(folder / "config.json")
    assert str(folder) in caught.value.fix and open_source(folder)
