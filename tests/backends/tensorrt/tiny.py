"""A small ONNX file that needs none of moec's own lowering, and a request to build it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moec.backends.tensorrt.edition import RTX

needs_rtx = pytest.mark.skipif(RTX.version() is None, reason=f"TensorRT-RTX is not installed: {RTX.install}")
PROFILE = {"name": "batch", "sizes": {}, "shapes": {"x": [[1, 8], [4, 8], [16, 8]]}}


def write(path: Path, operator: str = "Relu") -> Path:
    """`operator(x @ w)` of `x` `[rows, 8]`, float32."""
    weights = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "product"), helper.make_node(operator, ["h"], ["y"], "last")]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 8]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "tiny", tensors[:1], tensors[1:], [weights]), opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


def request(folder: Path, **changes: Any) -> dict[str, Any]:
    """What the worker is asked: build `model.onnx` of a folder with TensorRT-RTX."""
    onnx_file = changes.pop("onnx", None) or write(folder / "model.onnx")
    asked = {"edition": RTX.backend, "onnx": str(onnx_file), "plan": str(folder / "model.plan"), "profiles": [PROFILE], "architectures": []}
    return {**asked, "workspace_bytes": 0, "timing_cache": "", "native": [], "kernels": [], **changes}
