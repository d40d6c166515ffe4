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
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", tensors[:1], tensors[1:], [weights]),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    model.ir_version = 10
    onnx.save(model, path)
    return path


def write_floats(path: Path, kind: str) -> Path:
    """`x @ w.T` of `x` `[rows, 8]` twice beside itself, and `w` `[8, 16]` of ones in small floats."""
    scale, nodes = (
        [numpy_helper.from_array(np.float32(1.0), "scale")],
        [helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"])],
    )
    if kind == "nvfp4":
        scale.append(helper.make_tensor("steps", TensorProto.FLOAT8E4M3FN, [8, 1], b"\x38" * 8, raw=True))
        nodes = [
            helper.make_node("DequantizeLinear", ["steps", "scale"], ["s"]),
            helper.make_node("DequantizeLinear", ["codes", "s"], ["w"], block_size=16),
        ]
        codes = helper.make_tensor("codes", TensorProto.FLOAT4E2M1, [8, 16], b"\x22" * 64, raw=True)
    else:
        codes = helper.make_tensor("codes", TensorProto.FLOAT8E4M3FN, [8, 16], b"\x38" * 128, raw=True)
    nodes += [
        helper.make_node("Concat", ["x", "x"], ["wide"], axis=1),
        helper.make_node("Gemm", ["wide", "w"], ["y"], transB=1),
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 8]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "floats", tensors[:1], tensors[1:], [codes, *scale]),
        opset_imports=[helper.make_opsetid("", 23)],
    )
    model.ir_version = 11
    onnx.save(model, path)
    return path


def request(folder: Path, **changes: Any) -> dict[str, Any]:
    """What the worker is asked: build `model.onnx` of a folder with TensorRT-RTX."""
    onnx_file = changes.pop("onnx", None) or write(folder / "model.onnx")
    asked = {
        "edition": RTX.backend,
        "onnx": str(onnx_file),
        "plan": str(folder / "model.plan"),
        "profiles": [PROFILE],
        "architectures": [],
    }
    return {**asked, "workspace_bytes": 0, "timing_cache": "", "settings": {}, "native": [], "kernels": [], **changes}
