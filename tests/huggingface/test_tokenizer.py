"""Tokenizers and limits come from the engine's folder first, then from the model's, and from nowhere else."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.huggingface.tokenizer import load_tokenizer, text_facts
from tests.byte_tokenizer import write_tokenizer
from tests.zoo import edit_config


def test_the_engines_folder_comes_first(tmp_path: Path) -> None:
    engine, source = tmp_path / "engine", tmp_path / "source"
    engine.mkdir()
    write_tokenizer(source, 300)
    assert len(load_tokenizer(engine, str(source)) or ()) == 259
    write_tokenizer(engine, 96)
    assert len(load_tokenizer(engine, str(source)) or ()) == 96


def test_none_and_broken_ones(tmp_path: Path) -> None:
    for source in ("nobody/such-model", "LlamaForCausalLM", "model.py:build", str(tmp_path)):
        assert load_tokenizer(tmp_path, source) is None
    (write_tokenizer(tmp_path) / "tokenizer.json").write_text("{}")
    with pytest.raises(MoecError) as error:
        load_tokenizer(tmp_path, "")
    assert error.value.code == "M204" and "does not load" in error.value.what


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"])
def test_links_out_of_the_folder_are_not_followed(name: str, tmp_path: Path) -> None:
    model = write_tokenizer(tmp_path / "model")
    (tmp_path / name).write_text((model / name).read_text() if (model / name).exists() else "")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / name)
    with pytest.raises(MoecError) as error:
        load_tokenizer(model, "")
    assert error.value.code == "M204" and f"{name} is a link out" in error.value.what


def test_links_of_the_cache_are_followed(tmp_path: Path) -> None:
    blobs = write_tokenizer(tmp_path / "models--a--b" / "blobs")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1f"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert load_tokenizer(snapshot, "")


def test_limits(mixtral: Path, tmp_path: Path) -> None:
    facts = text_facts(tmp_path, str(mixtral), ())
    assert facts is not None
    assert (facts.context, facts.vocabulary, facts.eos, facts.pad) == (256, 96, (2,), 0)
    (tmp_path / "config.json").write_text((mixtral / "config.json").read_text())
    edit_config(tmp_path, max_position_embeddings=40)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    facts = text_facts(tmp_path, str(mixtral), ())
    assert facts is not None and (facts.context, facts.eos) == (40, (2, 9))
    edit_config(
        tmp_path, model_type="of-its-own", auto_map={"AutoConfig": "evil.EvilConfig"}
    )  # read as plain data, no code is run
    facts = text_facts(tmp_path, "", ())
    assert facts is not None and facts.context == 40
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(MoecError) as error:
        text_facts(tmp_path, "", ())
    assert error.value.code == "M204"


def test_no_config_means_no_facts(tmp_path: Path) -> None:
    assert text_facts(tmp_path, "nowhere", ()) is None


def test_code_of_a_tokenizer_is_not_run_and_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenization_evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    auto = {"AutoTokenizer": ["tokenization_evil.Evil", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto, "tokenizer_class": "Evil"}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(MoecError) as error:
        load_tokenizer(tmp_path, "")
    assert error.value.code == "M204" and not (tmp_path / "mark").exists()
    assert sys.stdin.read() == "y\n"
