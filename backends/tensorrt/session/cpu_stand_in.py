"""The graph as ONNX Runtime's CPU can run it: it has no kernel for 4-bit floats, so these are decoded before it loads
the file.

The bytes are decoded by `ml_dtypes`, which knows nothing of moec: what runs is the engine's own file with every
`DequantizeLinear` of 4-bit floats replaced by the numbers that ONNX defines for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.execution.engine import Engine

MODEL_FILE = "model.onnx"
OPSET = 21  # of the rewritten file: ONNX Runtime has kernels of every operator for that
DECODED = "4-bit floats decoded before, by ml_dtypes"


def runnable(folder: Path, load: Callable[[Path], Engine]) -> Engine:
    """An engine from the `model.onnx` of a folder, or from a copy without 4-bit floats that lives as long as the engine
    does."""
    model = ir.load(folder / MODEL_FILE)
    if not decode(model):
        return load(folder)
    beside = TemporaryDirectory(prefix="moec-")
    ir.save(model, Path(beside.name) / MODEL_FILE, external_data=f"{MODEL_FILE}.data", size_threshold_bytes=1024)
    engine = load(Path(beside.name))
    weakref.finalize(engine, beside.cleanup)
    return engine


def decode(model: ir.Model) -> int:
    """Replace every `DequantizeLinear` of 4-bit floats by its numbers, in place and lazily. Returns how many there
    were."""
    nodes = [
        n
        for n in model.graph
        if n.op_type == "DequantizeLinear" and n.inputs[0] is not None and n.inputs[0].dtype == ir.DataType.FLOAT4E2M1
    ]
    for node in nodes:
        codes, scales = node.inputs[:2]
        assert codes is not None and codes.const_value is not None and scales is not None
        inner, output = scales.producer(), node.outputs[0]
        block = node.attributes.get_int("block_size")
        tensor = _Decoded(
            codes.const_value, _constants(inner if inner is not None else scales), block, str(output.name)
        )
        value = ir.Value(
            name=f"{output.name}.decoded", type=ir.TensorType(tensor.dtype), shape=codes.shape, const_value=tensor
        )
        model.graph.register_initializer(value)
        ir.convenience.replace_all_uses_with(output, value)
        _remove(model.graph, [node, *([inner] if inner is not None else [])])
    if nodes:
        model.opset_imports[""] = OPSET
    return len(nodes)


def _constants(source: ir.Node | ir.Value) -> list[Any]:
    values = source.inputs if isinstance(source, ir.Node) else [source]
    found = [value.const_value for value in values if value is not None]
    assert all(constant is not None for constant in found), "scales of weights are constants"
    return found


class _Decoded(ir.LazyTensor):  # type: ignore[misc]  # onnx_ir is Any to mypy
    """`codes * scales`, a scale for each block along the last dimension, computed when it is written."""

    def __init__(self, codes: Any, scales: list[Any], block: int, name: str) -> None:
        def read() -> ir.TensorProtocol:
            steps = scales[0].numpy().astype(np.float32)
            steps = steps if len(scales) == 1 else steps * scales[1].numpy().astype(np.float32)
            return ir.Tensor(codes.numpy().astype(np.float32) * np.repeat(steps, block, axis=-1), name=name)

        super().__init__(read, dtype=ir.DataType.FLOAT, shape=codes.shape, name=name)


def _remove(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    for node in nodes:
        inputs = [v for v in node.inputs if v is not None]
        graph.remove(node, safe=True)
        for value in inputs:
            if value.is_initializer() and not value.uses():
                graph.initializers.pop(str(value.name), None)
