"""A `.pt2` that holds code runs none of it, in whichever of its parts the code stands."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moec.errors import MoecError
from moec.frontend.exported_file import load_exported
from moec.frontend.module_source import ExportedSource

MODEL, WEIGHTS, INPUTS = "models/model.json", "data/weights/model_weights_config.json", "data/sample_inputs/model.pt"


class Halves(nn.Module):
    """Sizes that are expressions: every pair of rows is one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x[:, : x.shape[1] // 2 * 2].reshape(-1, 4))


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.write_text, (self.mark, "owned")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "good.pt2"
    sizes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim.AUTO}}
    torch.export.save(torch.export.export(Halves(), (torch.randn(3, 8),), dynamic_shapes=sizes), path)
    return path


def edited(good: Path, path: Path, changes: dict[str, bytes | Callable[[bytes], bytes]]) -> Path:
    """A copy of an archive with other parts."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        root = old.namelist()[0].split("/")[0]
        parts = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        for name, change in changes.items():
            parts[name] = change(parts[name]) if callable(change) else change
        for name, content in parts.items():
            new.writestr(f"{root}/{name}", content)
    return path


def pickled(payload: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode())

    return change


def as_pickle(content: bytes) -> bytes:
    config = json.loads(content)
    config["config"]["layer.weight"]["use_pickle"] = True
    return json.dumps(config).encode()


def evil(mark: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> the error's code, and parts of an archive that write to `mark` when they are believed."""
    code = f"__import__('pathlib').Path('{mark}').write_text('owned')"
    constant = {
        "config": {"c": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}
    }
    return {
        "sample inputs": ("M204", {INPUTS: pickled(((Payload(mark),), {}))}),
        "a pickled weight": ("M209", {WEIGHTS: as_pickle, "data/weights/weight_0": pickled(Payload(mark))}),
        "an object": ("M209", {
            "data/constants/model_constants_config.json": json.dumps(constant).encode(),
            "data/constants/opaque_obj_0": pickle.dumps(Payload(mark)),
        }),
        "a size": ("M209", {MODEL: replaced("Symbol('s27', positive=True, integer=True)", code)}),
        "an operator": ("M209", {MODEL: replaced("torch.ops.aten.reshape.default", "torch.os.system")}),
        "a library": ("M209", {MODEL: replaced("torch.ops.aten.reshape.default", "torch.ops.load_library")}),
        "a file": ("M209", {MODEL: replaced("torch.ops.aten.reshape.default", "torch.ops.aten.from_file.default")}),
        "a compiled part": ("M209", {"data/aotinductor/model/model.so": b"\x7fELF"}),
        "endless digits": ("M209", {MODEL: replaced("Integer(2)", "Pow(Integer(9), Pow(Integer(9), Integer(99)))")}),
    }  # fmt: skip


@pytest.mark.parametrize("where", evil(Path("mark")))
def test_nothing_of_it_runs(where: str, good: Path, tmp_path: Path) -> None:
    code, changes = evil(tmp_path / "mark")[where]
    path = edited(good, tmp_path / "evil.pt2", changes)
    with pytest.raises(MoecError) as caught:
        ExportedSource(path).reference()
    assert caught.value.code == code
    assert not (tmp_path / "mark").exists()


def test_torch_itself_would_run_it(good: Path, tmp_path: Path) -> None:
    """So that the test above can fail."""
    for where in ("sample inputs", "a size"):
        path = edited(good, tmp_path / "evil.pt2", evil(tmp_path / "mark")[where][1])
        try:
            torch.export.load(path)
        except Exception as error:
            print(error)
        assert (tmp_path / "mark").exists(), where
        (tmp_path / "mark").unlink()


def test_the_form_of_older_versions_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", pickled(Payload(tmp_path / "mark")))
    with pytest.raises(MoecError, match="export the model again") as caught:
        load_exported(tmp_path / "old.pt2")
    assert caught.value.code == "M204" and not (tmp_path / "mark").exists()


def test_a_weight_without_values_takes_no_memory(good: Path, tmp_path: Path) -> None:
    huge = replaced('"sizes": [{"as_int": 2}, {"as_int": 4}]', '"sizes": [{"as_int": 2000000000}, {"as_int": 400000}]')
    path = edited(good, tmp_path / "huge.pt2", {WEIGHTS: huge, "data/weights/weight_0": b""})
    with pytest.raises(MoecError) as caught:
        load_exported(path)
    assert caught.value.code == "M204"


def test_a_right_file_is_read(good: Path) -> None:
    assert load_exported(good).module()(torch.randn(6, 10)).shape == (15, 2)
    assert ExportedSource(good).inputs[0].name == "x"
