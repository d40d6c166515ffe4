"""A session runs on the providers that were asked for, or is not opened."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import moec
from moec.backends.onnx.sessions import open_on
from moec.errors import MoecError

CUDA = "CUDAExecutionProvider"
ROOT = Path(moec.__file__).parents[1]


def graph() -> bytes:
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Relu", [x])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}), ir_version=10)
    return bytes(ir.to_proto(model).SerializeToString())


def test_a_provider_that_is_not_there_is_said_on_no_stream_of_results(capfd: pytest.CaptureFixture[str]) -> None:
    import onnxruntime as ort

    session = open_on(["CPUExecutionProvider"], graph(), ort.SessionOptions())
    assert session.get_providers() == ["CPUExecutionProvider"]
    if CUDA not in ort.get_available_providers() or torch.cuda.is_available():
        pytest.skip("the runtime has no CUDA provider, or has all that it needs")
    with pytest.raises(MoecError) as caught:
        open_on([CUDA, "CPUExecutionProvider"], graph(), ort.SessionOptions())
    assert caught.value.code == "M302" and CUDA in caught.value.what
    assert capfd.readouterr().out == ""


def test_sessions_are_opened_here_alone() -> None:
    sources = [path for folder in ("moec", "backends", "passes") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in sources if opens(path.read_text())] == ["sessions.py"]


def opens(source: str) -> bool:
    """Whether code makes a session; a text that says how one is made does not."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return any(getattr(called, "attr", getattr(called, "id", "")) == "InferenceSession" for called in calls)


@pytest.mark.parametrize("source", ["ort.InferenceSession(x)", "from onnxruntime import *\nInferenceSession(x)"])
def test_opening_is_seen(source: str) -> None:
    assert opens(source) and not opens(f"say = {source!r}")
