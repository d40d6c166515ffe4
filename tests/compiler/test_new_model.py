"""A compile whose model is made of several: proven against what transformers runs, proven again, and refused where one
of them has changed since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moec
from moec.compiler.new_model import NewModel, making
from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from tests import zoo
from tests.byte_tokenizer import write_tokenizer
from tests.command_line import Cli


def test_passes_that_make_a_model_are_taken_apart() -> None:
    first, following = making(Pipeline.parse("merge(sources=[a/, b/]), quantize(bits=8), fuse-moe"))
    assert [p.name for p in first] == ["merge"] and [p.name for p in following] == ["quantize", "fuse-moe"]
    assert making(Pipeline.parse("quantize(bits=8)"))[0].passes == ()


def test_a_merged_model_is_compiled_saved_proven_and_proven_again(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "code", "law")):
        zoo.save("llama", tmp_path / name, seed=seed)
        write_tokenizer(tmp_path / name)
    Path("a.txt").write_text("def f(x): return x + 1 # code; " * 40)
    Path("b.txt").write_text("The party of the FIRST PART shall " * 40)
    merging = ["--pass", "merge(sources=[code/, law/])", "--calibration", "code=a.txt,law=b.txt"]
    data = cli.json("compile", "base", *merging, "--save-hf", "merged", "-o", "engine")
    assert data["ok"] and data["report"]["steps"][0]["contract"] == "new model"
    assert data["report"]["proof"]["checks"]["outputs"]["comparison"]["reference"] == "eager (transformers)"
    assert json.loads(Path("merged/config.json").read_text())["architectures"] == ["MixtralForCausalLM"]
    assert cli.json("verify", "engine")["ok"]
    assert cli.json("verify", "engine", "--against", "merged")["ok"]
    assert not cli.json("verify", "engine", "--against", "code", status=1)["ok"]  # must fail: another model
    zoo.save("llama", tmp_path / "law", seed=7)
    write_tokenizer(tmp_path / "law")
    cli.json("verify", "engine", status=1)
    assert "M106" in cli.err and "merged has changed" in cli.err


def test_a_new_model_is_saved_as_a_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    zoo.save("mixtral", tmp_path / "base")
    new = NewModel(moec.open_source(str(tmp_path / "base")), Pipeline.parse(""), None, 0)
    new.save_gguf(new.capture(), tmp_path / "m.gguf", "f32")
    assert moec.open_source(str(tmp_path / "m.gguf")).facts().model_type == "mixtral"


def test_a_model_of_another_vocabulary_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, size in (("base", zoo.VOCAB), ("code", zoo.VOCAB), ("law", zoo.VOCAB + 9)):
        zoo.save("llama", tmp_path / name, vocab_size=size)
        write_tokenizer(tmp_path / name, size)
    Path("a.txt").write_text("def f(x): return x + 1 # code; " * 40)
    how = "merge(sources=[code/, law/])"
    with pytest.raises(MoecError, match="M203"):
        moec.compile("base", out="engine", pipeline=how, calibration="code=a.txt,law=a.txt")
    assert not Path("engine").exists()
