"""Choosing a layout, and engines that are found, loaded, checked and rebuilt in each."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moec
from moec.errors import MoecError
from moec.layouts import choose, model_folder
from tests.layouts.test_genai import FACTS, decoder_inputs

MODULE = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.GELU())
"""


def test_decoders_go_to_onnxruntime_genai_where_it_can_run_them() -> None:
    assert choose(None, decoder_inputs(), FACTS) == "genai"
    assert choose(None, decoder_inputs()[:2], FACTS) == choose(None, decoder_inputs(value_width=6), FACTS) == "plain"
    assert [choose(name, decoder_inputs(), FACTS) for name in ("plain", "genai", "triton")] == [
        "plain",
        "genai",
        "triton",
    ]
    assert choose("triton", decoder_inputs()[:2], replace(FACTS, context=0)) == "triton"


def test_layouts_that_do_not_exist_or_do_not_fit_are_refused() -> None:
    with pytest.raises(MoecError, match="'genay'") as unknown:
        choose("genay", decoder_inputs(), FACTS)
    assert unknown.value.code == "M202" and "genai" in unknown.value.fix
    with pytest.raises(MoecError, match="no key-value cache") as unfit:
        choose("genai", decoder_inputs()[:2], FACTS)
    assert unfit.value.code == "M208" and "--layout plain" in unfit.value.fix


def test_a_refused_layout_costs_no_capture(mixtral: Path, tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="no layout"):
        moec.compile(mixtral, out=tmp_path / "engine", layout="nonsense")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["model.onnx", "net/1/model.onnx", "net/1/model.plan", "net/2/model.onnx"])
def test_the_engine_is_found_in_every_layout(place: str, tmp_path: Path) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    (tmp_path / "1_Pooling").mkdir()
    assert model_folder(tmp_path) == (tmp_path if "/2/" in place else file.parent)


def test_a_repository_is_loaded_checked_and_rebuilt_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODULE)
    folder, text = tmp_path / "served", f"{tmp_path / 'net.py'}:make"
    report = moec.compile(text, inputs=["input=batch,6:float32"], out=folder, layout="triton")
    assert (
        report.layout == "triton"
        and (folder / "make/1/model.onnx").is_file()
        and (folder / "README.md").is_file()
        and "make/config.pbtxt" in [a.name for a in report.artefacts]
    )
    x = torch.randn(4, 6)
    want = moec.load(folder)(input=x)
    assert moec.verify(folder, trust_remote_code=True).ok

    again = moec.api.rebuild(folder / "moec.json", tmp_path / "again", trust_remote_code=True)
    assert again.artefacts == report.artefacts
    assert all(torch.equal(v, want[k]) for k, v in moec.load(tmp_path / "again")(input=x).items())
    shutil.copyfile(folder / "moec.json", tmp_path / "again" / "moec.json")
    (tmp_path / "again/make/config.pbtxt").write_text("# served otherwise")
    with pytest.raises(MoecError) as caught:
        moec.load(tmp_path / "again")
    assert caught.value.code == "M106" and "config.pbtxt" in caught.value.what
