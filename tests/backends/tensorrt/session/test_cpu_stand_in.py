"""What runs in the place of TensorRT: the same file, with 4-bit floats decoded; wrong bytes come out wrong, and the
copy goes with the engine."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import moec
from moec.backends.onnxruntime.session.engine import OnnxruntimeEngine
from moec.backends.tensorrt.session.cpu_stand_in import DECODED, MODEL_FILE, decode, runnable
from moec.execution.engine import Engine
from moec.targets.target import Target

X = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "out"
    moec.compile(
        Net(),
        inputs={"x": X},
        out=out,
        target="tensorrt:sm100",
        pipeline="quantize(format=nvfp4)",
        build=False,
        tolerance=0.9,
    )
    return out


def folders(engine: Path) -> list[Path]:
    """Where the stand-in's file lies, as it is loaded."""
    seen: list[Path] = []

    def load(folder: Path) -> Engine:
        seen.append(folder)
        return OnnxruntimeEngine(folder, Target("onnxruntime"))

    made = runnable(engine, load)
    assert (seen[0] / MODEL_FILE).exists()
    made.close()
    return seen


def output(engine: Path) -> Tensor:
    return next(
        iter(runnable(engine, lambda folder: OnnxruntimeEngine(folder, Target("onnxruntime"))).run({"x": X}).values())
    )


def test_the_manifest_says_what_ran_and_what_is_open(engine: Path) -> None:
    facts = json.loads((engine / "moec.json").read_text())["facts"]
    assert facts["verified_by"] == f"onnxruntime, {DECODED}" and any("kernels" in what for what in facts["unproven"])
    assert {row["kind"] for row in facts["packed"]} == {"nvfp4, blocks of 16"}


def test_4_bit_floats_become_the_numbers_that_they_are(engine: Path) -> None:
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED|cannot load"):
        OnnxruntimeEngine(engine, Target("onnxruntime"))
    model = ir.load(engine / MODEL_FILE)
    assert decode(model) == 2 and decode(model) == 0
    assert not [n for n in model.graph if n.op_type == "DequantizeLinear"]
    assert {v.dtype for v in model.graph.initializers.values()} <= {ir.DataType.FLOAT, ir.DataType.INT64}
    plain = Net()(X).detach()
    assert 0.02 < float((output(engine) - plain).norm() / plain.norm()) < 0.2


def test_other_bytes_give_other_numbers(engine: Path, tmp_path: Path) -> None:
    spoiled = Path(shutil.copytree(engine, tmp_path / "out"))
    data = bytearray((spoiled / f"{MODEL_FILE}.data").read_bytes())
    data[:64] = bytes(byte ^ 0x88 for byte in data[:64])  # signs of one row
    (spoiled / f"{MODEL_FILE}.data").write_bytes(data)
    assert not torch.equal(output(spoiled), output(engine))


def test_the_copy_goes_with_the_engine_and_other_files_are_loaded_where_they_lie(engine: Path, tmp_path: Path) -> None:
    (beside,) = folders(engine)
    gc.collect()
    assert beside != engine and not beside.exists()
    moec.compile(Net(), inputs={"x": X}, out=tmp_path / "out", target="tensorrt:sm100", build=False)
    assert folders(tmp_path / "out") == [tmp_path / "out"]
