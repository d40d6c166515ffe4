"""Lazy weights as onnx_ir tensors: written to external data block by block, never loaded as a whole."""

from __future__ import annotations

from typing import BinaryIO

import onnx_ir as ir
import torch
from torch import Tensor

from moec.weights.lazy import Weight, from_tensor

DTYPES = {
    torch.float64: ir.DataType.DOUBLE,
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.uint8: ir.DataType.UINT8,
    torch.int8: ir.DataType.INT8,
    torch.bool: ir.DataType.BOOL,
}


class WeightTensor(ir.LazyTensor):
    """An ONNX initializer whose bytes come from a `Weight` when they are asked for, and are never kept."""

    def __init__(self, weight: Weight, name: str) -> None:
        read = lambda: ir.tensor(weight.load().contiguous(), name=name)  # noqa: E731  # not a method: LazyTensor's repr would recurse
        super().__init__(read, dtype=DTYPES[weight.dtype], shape=ir.Shape(weight.shape), name=name)
        self.weight = weight

    def tobytes(self) -> bytes:
        return b"".join(as_bytes(block) for block in self.weight.blocks())

    def tofile(self, file: BinaryIO) -> None:
        """Stream the bytes into a file, one block in memory at a time."""
        for block in self.weight.blocks():
            file.write(as_bytes(block))


def as_bytes(block: Tensor) -> memoryview:
    """A contiguous CPU tensor's bytes, little-endian as ONNX and safetensors have them, without a copy."""
    return memoryview(block.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def is_constant(value: ir.Value) -> bool:
    """Whether a value is the same in every call, as far as its own node says."""
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def weight_of(value: ir.Value | None) -> Weight | None:
    """The lazy weight of an initializer; None for a value that is computed, or absent."""
    if value is None or value.const_value is None:
        return None
    if isinstance(value.const_value, WeightTensor):
        return value.const_value.weight
    return from_tensor(torch.from_numpy(value.const_value.numpy().copy()), str(value.name))


def add_initializer(graph: ir.Graph, weight: Weight, name: str, kind: type[WeightTensor] = WeightTensor) -> ir.Value:
    """Enter a weight as an initializer of a graph under a free name, as a tensor of some `kind`; returns its value."""
    free, n = name, 1
    while free in graph.initializers:
        free, n = f"{name}_{n}", n + 1
    tensor = kind(weight, free)
    value = ir.Value(name=free, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value
