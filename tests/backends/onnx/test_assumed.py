"""An ONNX file says itself what it was made for, through lowering, writing and loading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import moec
from moec.backends.onnx.assumed import ASSUMED, read_assumptions, write_assumptions
from moec.errors import MoecError
from moec.program.conditions import Assumptions, Condition, Values
from moec.targets.backend import find_backend
from moec.targets.target import Target

ASSUMES = Assumptions((Condition("sequence <= 20"),), (Values("input_ids", 0, 31),))
IDS = torch.randint(0, 32, (3, 11))


class Switches(nn.Module):
    """Another result above 20 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(32, 8), nn.Linear(8, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.head(self.table(input_ids))
        return x.cumsum(1) if input_ids.shape[1] > 20 else x


def model(metadata: dict[str, str]) -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 20}), ir_version=10, metadata_props=metadata)


def test_round_trip() -> None:
    made = model({})
    write_assumptions(made, Assumptions())
    assert made.metadata_props == {} and read_assumptions({}, "file") == Assumptions()
    write_assumptions(made, ASSUMES)
    assert read_assumptions(made.metadata_props, "file") == ASSUMES


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sizes": ["import os"], "values": []}', "[" * 100_000])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(MoecError) as caught:
        read_assumptions({ASSUMED: text}, "file")
    assert caught.value.code == "M106"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("assumed") / "engine"
    moec.compile(Switches().eval(), out=path, inputs={"input_ids": IDS}, dynamic={"input_ids": ("batch", "sequence")})
    return path


WRONG = [
    (torch.zeros(2, 21, dtype=torch.int64), "M213"),
    (torch.tensor([[-1]]), "M214"),
    (torch.tensor([[32]]), "M214"),
]


@pytest.mark.parametrize(("ids", "code"), WRONG)
def test_the_engine_refuses_from_its_file_alone(folder: Path, ids: Tensor, code: str) -> None:
    for engine in (moec.load(folder), find_backend(Target("onnxruntime")).load(folder, Target("onnxruntime"))):
        assert engine(input_ids=IDS)["output"].shape == (3, 11, 5)
        assert Assumptions(engine.conditions, engine.values) == ASSUMES and not engine.holds({"sequence": 21})
        for value in (ids, ids.numpy()):
            with pytest.raises(MoecError) as caught:
                engine(input_ids=value)
            assert caught.value.code == code and str(caught.value).count("\n") == 2


def test_the_runtime_itself_takes_a_negative_id(folder: Path) -> None:
    """What is checked here is not checked there: `Gather` counts from the end."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(folder / "model.onnx"))
    assert np.isfinite(session.run(None, {"input_ids": np.array([[-1]])})[0]).all()


def test_the_manifest_says_them_and_an_edit_of_it_cannot_take_them_away(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "engine"
    shutil.copytree(folder, copied)
    manifest = json.loads((copied / "moec.json").read_text())
    stated = manifest["proof"]["checks"]["conditions"]
    assert stated["sizes"] == ["sequence <= 20"] and stated["values"] == [["input_ids", 0, 31]]
    del manifest["proof"]["checks"]["conditions"]
    (copied / "moec.json").write_text(json.dumps(manifest))
    with pytest.raises(MoecError, match="sequence <= 20"):
        moec.load(copied)(input_ids=torch.zeros(2, 21, dtype=torch.int64))


@pytest.mark.parametrize("text", ["__import__('os').getcwd() == 1", "sequence <", 7])
def test_a_manifest_with_a_condition_that_is_none_is_refused(folder: Path, tmp_path: Path, text: object) -> None:
    copied = tmp_path / "engine"
    shutil.copytree(folder, copied)
    manifest = json.loads((copied / "moec.json").read_text())
    manifest["proof"]["checks"]["conditions"]["sizes"] = [text]
    (copied / "moec.json").write_text(json.dumps(manifest))
    with pytest.raises(MoecError) as caught:
        moec.load(copied)
    assert caught.value.code == "M106"
