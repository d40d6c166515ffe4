"""The graph as ONNX Runtime's CPU can run it, and as a proof asks: a fixed cache gets a front and an end that make one
that grows of it, see `grown_cache`; and it has no kernel for 4-bit floats, so these are decoded before it loads the
file.

The bytes are decoded by `ml_dtypes`, which knows nothing of moec: what runs is the engine's own file with every
`DequantizeLinear` of 4-bit floats replaced by the numbers that ONNX defines for it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.backends.tensorrt.fixed_signature import LENGTH
from moec.backends.tensorrt.session.grown_cache import grow
from moec.execution.engine import Engine
from moec.program.conditions import Assumptions

MODEL_FILE = "model.onnx"
OPSET = 21  # of the rewritten file: ONNX Runtime has kernels of every operator for that
FIXED_OPSET = 24  # with a fixed cache
DECODED = "4-bit floats decoded before, by ml_dtypes"


def runnable(folder: Path, load: Callable[[Path], Engine]) -> Engine:
    """An engine from the `model.onnx` of a folder, or from a copy that is changed as it must be and goes with the
    engine."""
    model = ir.load(folder / MODEL_FILE)
    decoded, room = decode(model), grow(model)
    if not decoded and room is None:
        return load(folder)
    beside = _beside(model, folder, copied=bool(decoded))
    engine = load(Path(beside.name))
    engine.assume(Assumptions((room,) if room else ()))
    weakref.finalize(engine, beside.cleanup)
    return engine


def _beside(model: ir.Model, folder: Path, copied: bool) -> TemporaryDirectory[str]:
    """A folder with a changed graph. Unless its weights are changed too they are linked, not copied: they may be large,
    and ONNX Runtime follows no symbolic link out of a folder."""
    data = folder / f"{MODEL_FILE}.data"
    for place in () if copied or not data.exists() else (None, folder.parent):
        found = None
        try:
            found = TemporaryDirectory(prefix=".moec-", dir=place)
            os.link(data, Path(found.name) / data.name)
        except OSError:  # another disk, or a folder that may not be written to
            if found is not None:
                found.cleanup()
            continue
        ir.save(model, Path(found.name) / MODEL_FILE)
        return found
    found = TemporaryDirectory(prefix="moec-")
    ir.save(model, Path(found.name) / MODEL_FILE, external_data=data.name, size_threshold_bytes=1024)
    return found


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
        fixed = any(value.name == LENGTH for value in model.graph.inputs)
        model.opset_imports[""] = FIXED_OPSET if fixed else OPSET
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
