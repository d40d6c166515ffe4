"""A kept capture that the model has left behind costs a compile time, never its engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moec import api
from moec.compiler.compile import compile_source
from moec.compiler.open import open_source
from moec.compiler.options import Options
from moec.compiler.recapture import is_outdated
from moec.errors import MoecError
from moec.execution.memory import own_bytes
from moec.files import kept
from moec.frontend.module_source import FileSource
from moec.progress import Progress

CODE = """
import json, pathlib, torch
from torch import nn

SCALE = json.loads(pathlib.Path(__file__).with_name("scale.json").read_text())

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 6)

    def forward(self, x):
        return torch.relu(self.up(x)) * SCALE

def net():
    torch.manual_seed(0)
    return Net()

def samples():
    return {"x": torch.ones(3, 6)}
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model with a number that neither its code nor its module holds."""
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "kept"))
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "scale.json").write_text("2.0")
    return f"{tmp_path / 'net.py'}:net:samples"


class Lines(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def done(self, detail: str = "") -> None:
        self.lines.append(detail)


@pytest.mark.parametrize("literal", ["SCALE", "torch.tensor(SCALE)"])
@pytest.mark.parametrize("reference", ["full", "streamed"])
def test_an_engine_is_of_the_model_as_it_is_now(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, literal: str
) -> None:
    """A proof against the untouched model fails, and all begins again; one against the graph has a new graph."""
    (tmp_path / "net.py").write_text(CODE.replace("* SCALE", f"* {literal}"))
    open_source(model).capture()
    (tmp_path / "scale.json").write_text("3.0")
    monkeypatch.setattr(FileSource, "loaded_bytes", 3 * 2**30 if reference == "streamed" else 0)
    lines, limit = Lines(), own_bytes() + 2**30
    report = compile_source(open_source(model), Options(max_ram=limit), tmp_path / "engine", progress=lines)
    assert report.settings["verify"] == reference and "max_ram" not in report.settings
    assert any("begun again" in line for line in lines.lines) == (reference == "full")
    assert "of its own, of" in lines.lines[-1] and "MORE" not in lines.lines[-1]
    x = torch.randn(4, 6)
    want = open_source(model).reference()(x=x)
    ((name, found),) = api.load(tmp_path / "engine")(x=x).items()
    assert torch.allclose(want[name], found, atol=1e-5)
    source = open_source(model)
    assert torch.allclose(source.capture().run(x=x)[name], want[name], atol=1e-5), "the old one is forgotten"
    assert bool(source.recalled_from) == (reference == "full"), "and the new one kept"


def test_one_that_holds_and_errors_of_other_kinds_change_nothing(model: str, tmp_path: Path) -> None:
    differs, full = MoecError("M101", "it differs", "engine", "-"), MoecError("M210", "full", "engine", "-")
    source = open_source(model)
    source.capture()
    assert not is_outdated(source, torch.float32, differs), "it was captured now"
    source.capture()
    assert not is_outdated(source, torch.float32, differs) and len(kept.entries()) == 1
    (tmp_path / "scale.json").write_text("3.0")
    other = open_source(model)
    other.capture()
    assert not is_outdated(other, torch.float32, full) and is_outdated(other, torch.float32, differs)
    assert not kept.entries()
