"""The lines for an engine's clients are such as run."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moec.report.clients import GENAI, RUNTIME, TRITON, client_code
from tests.backends.onnx.test_sessions import graph
from tests.report.test_report import make


def test_the_runtime_opens_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "model.onnx").write_bytes(graph())
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(client_code(RUNTIME, make(), "engine/"), found)
    assert [value.name for value in found["session"].get_inputs()] == ["x"]
    monkeypatch.chdir("engine")
    exec(client_code(RUNTIME, make(), "."), found)


def test_every_client_is_told_the_folder_and_the_provider() -> None:
    cuda = replace(make(), settings={**make().settings, "target": "onnxruntime:cuda"})
    assert "CUDAExecutionProvider" in client_code(RUNTIME, cuda, ".") and "CPU" in client_code(RUNTIME, make(), ".")
    assert 'Model("engine/")' in ast.unparse(ast.parse(client_code(GENAI, make(), "engine/"))).replace("'", '"')
    assert client_code(TRITON, make(), "engine/") == "tritonserver --model-repository=engine/"


def test_a_server_finds_the_library_of_operators_that_lies_in_the_repository() -> None:
    own = replace(make(), settings={**make().settings, "target": "onnxruntime:kernels=moec"})
    assert client_code(TRITON, own, "engine/") == "cd engine/ && tritonserver --model-repository=."
    assert "register_custom_ops_library" in client_code(RUNTIME, own, "engine/")
