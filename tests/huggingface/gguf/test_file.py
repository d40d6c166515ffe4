"""A GGUF file as a model, from the command line to an engine that writes text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.gguf.file import GgufFile, _put, is_gguf
from moec.huggingface.gguf.write import save_gguf
from moec.huggingface.opened import alike
from tests import zoo
from tests.command_line import Cli
from tests.huggingface.gguf import spoken

pytest.importorskip("gguf", reason="gguf is not installed")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gguf")
    source = open_source(str(spoken.folder("qwen3_moe", place / "model")))
    save_gguf(source.capture(), place / "m.gguf", source, floats="f32")
    return place / "m.gguf"


def test_a_file_is_known_by_its_name(file: Path, tmp_path: Path) -> None:
    assert is_gguf(str(file)) and not is_gguf("model/") and not is_gguf("m.gguf.txt")
    (tmp_path / "folder.gguf").mkdir()
    assert not is_gguf(str(tmp_path / "folder.gguf"))


def test_what_lies_beside_it_is_made_of_it(file: Path) -> None:
    from transformers import AutoTokenizer

    origin = GgufFile(str(file))
    own = AutoTokenizer.from_pretrained(file.parent / "model")
    made = AutoTokenizer.from_pretrained(origin.beside)
    assert made(spoken.TEXT)["input_ids"] == own(spoken.TEXT)["input_ids"]
    assert list(origin.hashes()) == ["m.gguf"] and origin.config.eos_token_id == 2
    place = origin.path
    del origin
    assert not place.exists()


def test_what_lies_beside_the_file_of_another_model_changes_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    origin = GgufFile(str(file))
    alone = AutoTokenizer.from_pretrained(origin.beside)
    (tmp_path / "m.gguf").symlink_to(file)
    other = {"bos_token": "<other>", "eos_token": "<pad>", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(other))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    origin, seen, real = GgufFile(str(tmp_path / "m.gguf")), list[str](), AutoTokenizer.from_pretrained

    def watched(place: Path, **how: Any) -> Any:
        if "gguf_file" in how:
            assert how["trust_remote_code"] is False
            seen.extend(path.name for path in Path(place).iterdir())
        return real(place, **how)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", watched)
    made = AutoTokenizer.from_pretrained(origin.beside)
    assert made.special_tokens_map == alone.special_tokens_map and made.get_vocab() == alone.get_vocab()
    assert not (tmp_path / "ran").exists() and seen == ["model.gguf"]


@pytest.mark.parametrize("failing", [(), ("symlink_to",), ("symlink_to", "hardlink_to")])
def test_a_file_is_put_elsewhere(failing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "place").mkdir()
    for name in failing:
        monkeypatch.setattr(Path, name, _refused)
    assert _put(tmp_path / "m.gguf", tmp_path / "place").read_bytes() == b"GGUF"


def _refused(*_: object) -> None:
    raise OSError


def test_another_model_is_opened_with_the_same_permissions(file: Path, tmp_path: Path) -> None:
    model = zoo.build("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(MoecError) as caught:
        alike(GgufFile(str(file)), str(tmp_path))
    assert caught.value.code == "M209"
    origin = open_source(str(file), allow_pickle=True).origin
    folder = alike(origin, str(tmp_path))
    assert folder.raw["model_type"] == "llama"
    assert isinstance(alike(origin, str(file)), GgufFile) and isinstance(alike(folder, str(file)), GgufFile)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        GgufFile(str(tmp_path / "none.gguf"))
    assert caught.value.code == "M204"


def test_a_plan_is_made_of_its_config(file: Path, cli: Cli) -> None:
    assert cli.json("plan", file, status=2)["error"]["code"] == "M204"
    origin = GgufFile(str(file))
    assert cli.json("plan", origin.path / "config.json")["advice"]  # as in an engine's folder: the way out


@pytest.mark.slow
def test_the_engine_of_a_file_writes_the_text(file: Path, tmp_path: Path, cli: Cli) -> None:
    engine = tmp_path / "engine"
    assert cli.json("compile", file, "-o", engine)["ok"]
    said = cli.json("run", engine, spoken.TEXT[:25], "--max-tokens", "20")["text"]
    assert said and spoken.TEXT[25:].startswith(said)
    assert cli.json("verify", engine)["ok"]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    file.rename(file.with_suffix(".kept"))
    other.rename(file)
    try:
        assert cli.json("verify", engine, status=1)["error"]["code"] == "M106"
    finally:
        file.with_suffix(".kept").rename(file)
