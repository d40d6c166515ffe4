"""A manifest's target counts as far as the engine's file shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from moec.backends.onnx.shown import shown
from moec.targets.target import Target


def model(folder: Path, dtype: type = np.float32, level: int | None = None) -> Path:
    """One product with a packed weight."""
    x = ir.Value(name="x", shape=ir.Shape((2, 16)), type=ir.TensorType(ir.DataType.FLOAT))
    scale = ir.Value(name="s", const_value=ir.tensor(np.ones((4,), dtype), name="s"))
    attributes = {} if level is None else {"accuracy_level": ir.AttrInt64("accuracy_level", level)}
    node = ir.Node("com.microsoft", "MatMulNBits", [x, scale], attributes=attributes, name="product")
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[scale], opset_imports={"": 21, "com.microsoft": 1})
    ir.save(ir.Model(graph, ir_version=10), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("dtype", "level", "options", "kept"),
    [
        (np.float32, 4, {"accuracy": "int8"}, True),
        (np.float32, 0, {"accuracy": "int8"}, False),
        (np.float32, None, {"accuracy": "int8"}, False),
        (np.float16, None, {"precision": "fp16"}, True),
        (np.float32, None, {"precision": "fp16"}, False),
        (np.float16, None, {"precision": "bf16"}, False),
        (np.float32, None, {"accuracy": "exact", "precision": "fp32", "threads": "2"}, True),
    ],
)
def test_options_that_loosen_count_where_they_are_shown(
    dtype: type, level: int | None, options: dict[str, str], kept: bool, tmp_path: Path
) -> None:
    target = Target("onnxruntime", options={"threads": "1", **options})
    found = shown(model(tmp_path, dtype, level), target)
    assert found == (target if kept else Target("onnxruntime", options={"threads": "1"}))
