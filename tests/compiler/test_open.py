"""What the user names is opened by its form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import moec
from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.frontend.module_source import ExportedSource, ModuleSource
from moec.huggingface.source import HuggingFaceSource
from tests.moe_module import MoeModel, source_of
from tests.third_party import install
from tests.zoo import build

CODE = "import torch\ndef build():\n    return torch.nn.Linear(4, 2)\n"


def test_a_source_is_itself() -> None:
    source = source_of(MoeModel())
    assert open_source(source) is source


def test_a_module_with_inputs() -> None:
    source = open_source(nn.Linear(4, 2), inputs={"input": torch.randn(3, 4)})
    assert isinstance(source, ModuleSource) and source.text == "Linear"
    assert source.inputs[0].shape == ("batch", 4)
    assert open_source(nn.Linear(4, 2), inputs={"input": torch.randn(3, 4)}, dynamic={}).inputs[0].shape == (3, 4)


def test_a_module_without_inputs_is_refused_unless_it_is_transformers() -> None:
    with pytest.raises(MoecError) as caught:
        open_source(nn.Linear(4, 2))
    assert caught.value.code == "M201" and "inputs=" in caught.value.fix
    assert isinstance(open_source(build("llama")), HuggingFaceSource)


def test_texts(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE)
    torch.export.save(torch.export.export(nn.Linear(4, 2), (torch.randn(3, 4),)), tmp_path / "net.pt2")
    assert isinstance(open_source(str(llama)), HuggingFaceSource)
    assert isinstance(open_source(llama), HuggingFaceSource)
    assert isinstance(open_source(f"{tmp_path}/net.py:build", inputs=["input=batch,4:float32"]), ModuleSource)
    assert isinstance(open_source(tmp_path / "net.pt2"), ExportedSource)


THEIRS = """
import torch
from moec import Opening, Source
from moec.frontend.module_source import ModuleSource

class Layers(ModuleSource):
    @classmethod
    def opens(cls, model, opening):
        return isinstance(model, list) or str(model).endswith(".layers")

    @classmethod
    def open(cls, model, opening):
        widths = model if isinstance(model, list) else [int(n) for n in open(model).read().split()]
        return cls(torch.nn.Linear(*widths), {"input": torch.randn(3, widths[0])}, text=str(model))
"""


def test_a_third_partys_source_opens_texts_and_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MoecError, match="no model that moec opens") as caught:
        open_source([4, 2])
    assert caught.value.code == "M204"
    install(tmp_path, monkeypatch, THEIRS, sources="layers = theirs:Layers")
    (tmp_path / "net.layers").write_text("4 2")
    for model in ([4, 2], tmp_path / "net.layers"):
        source = open_source(model)
        assert type(source).__name__ == "Layers" and source.inputs[0].shape == ("batch", 4)
        assert moec.compile(model, out=tmp_path / "engine").source == str(model)
    assert isinstance(open_source(build("llama")), HuggingFaceSource)


def test_a_python_file_is_opened_without_the_library(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE)
    code = (
        "import sys, moec\n"
        f"moec.open_source(r'{tmp_path}/net.py:build', inputs=['input=batch,4:float32'])\n"
        "assert not [m for m in sys.modules if m.startswith('moec.huggingface')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("text", ["nowhere.pt2", "nowhere.py:build", "./no-such-folder"])
def test_what_is_not_there_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MoecError) as caught:
        open_source(text)
    assert caught.value.code == "M204"


@pytest.mark.parametrize("kind", ["net.py:build", "net.pt2", "module", "source"])
def test_nothing_is_left_out_of_what_is_no_model_of_transformers(kind: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE)
    torch.export.save(torch.export.export(nn.Linear(4, 2), (torch.randn(3, 4),)), tmp_path / "net.pt2")
    objects = {"module": nn.Linear(4, 2), "source": source_of(MoeModel())}
    inputs = {"input": torch.randn(3, 4)} if kind == "module" else None
    with pytest.raises(MoecError) as caught:
        open_source(objects.get(kind, f"{tmp_path}/{kind}"), inputs=inputs, leave_out=["bbox"])
    assert caught.value.code == "M201" and "--leave-out" in caught.value.what


@pytest.mark.parametrize("given", [{"inputs": ["input_id=batch,4:int64"]}, {"dynamic": {"input_id": ("batch", None)}}])
def test_inputs_are_not_ignored_where_a_model_has_its_own(given: Any, mixtral: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE)
    torch.export.save(torch.export.export(nn.Linear(4, 2), (torch.randn(3, 4),)), tmp_path / "net.pt2")
    with pytest.raises(MoecError) as caught:
        open_source(tmp_path / "net.pt2", **given)
    assert caught.value.code == "M201" and "out: input is there already" in caught.value.fix
    with pytest.raises(MoecError) as caught:
        open_source(mixtral, **given)
    assert caught.value.code == "M201" and ("input_ids" if "inputs" in given else "samples") in str(caught.value)
    given = {"inputs": {"input": torch.randn(3, 4)}} if "inputs" in given else given
    with pytest.raises(MoecError) as caught:
        open_source(f"{tmp_path}/net.py:build", **given)
    assert caught.value.code == "M201" and "name=dims:dtype" in caught.value.fix
