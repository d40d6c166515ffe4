"""What an ONNX model holds of fixed value: initializers, numbers in attributes, and the operators themselves, in its
functions too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from moec.backends.onnx.tensors import DTYPES, WeightTensor
from moec.targets.backend import Constant
from moec.weights.lazy import Weight, from_tensor

_TORCH = {theirs: ours for ours, theirs in DTYPES.items()}
_HALVES = 2  # elements of four bits in a byte


def constants_of(model: ir.Model) -> Iterator[Constant]:
    """Everything of fixed value in a model, in memory or in files; nothing is read before it is asked for. Names are
    the values' own; attributes have `<first output>.<attribute>`, what stands in a branch or a function has its name
    before it."""
    yield Constant("inputs", text=_signature(model.graph.inputs))
    yield Constant("outputs", text=_signature(model.graph.outputs))
    yield Constant("opsets", text=_opsets(model.opset_imports))
    yield from _graph(model.graph, "")
    for function in model.functions.values():
        yield from _function(function)


def _signature(values: Any) -> str:
    return ", ".join(f"{v.name}: {v.dtype} {v.shape}" for v in values)


def _opsets(imports: Mapping[str, int]) -> str:
    """By which version of each domain its operators are read."""
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(imports.items()))


def _function(function: ir.Function) -> Iterator[Constant]:
    """What is called by its name in the graph. A runtime may take it for an operator of its own of that name, too."""
    place = f"{'::'.join(function.identifier())}/"
    yield Constant(f"{place}inputs", text=", ".join(str(v.name) for v in function.inputs))
    yield Constant(f"{place}outputs", text=", ".join(str(v.name) for v in function.outputs))
    yield Constant(f"{place}opsets", text=_opsets(function.opset_imports))
    for node in function:
        yield from _node(node, place)


def _graph(graph: ir.Graph, inside: str) -> Iterator[Constant]:
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            yield _tensor(f"{inside}{name}", value.const_value)
    for node in graph:
        yield from _node(node, inside)


def _node(node: ir.Node, inside: str) -> Iterator[Constant]:
    place = f"{inside}{node.outputs[0].name}"
    reads = ", ".join("" if v is None else str(v.name) for v in node.inputs)
    words = []
    for name, attribute in sorted(node.attributes.items()):
        where, value = f"{place}.{name}", attribute.value
        if attribute.type == ir.AttributeType.GRAPH:
            yield from _graph(value, f"{where}/")
        elif attribute.type == ir.AttributeType.TENSOR:
            yield _tensor(where, value)
        elif attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
            yield _numbers(where, np.asarray(value, np.float32))  # as the file stores it
        elif attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
            yield _numbers(where, np.asarray(value, np.int64))
        else:
            words.append(f"{name}={value}")
    writes = ", ".join(str(v.name) for v in node.outputs)
    yield Constant(place, text=f"{writes} = {node.domain}::{node.op_type}({reads}) {' '.join(words)}".strip())


def _numbers(name: str, values: np.ndarray[Any, Any]) -> Constant:
    return Constant(name, str(values.dtype), values.shape, from_tensor(torch.from_numpy(values.copy()), name))


def _tensor(name: str, tensor: Any) -> Constant:
    lazy = isinstance(tensor, WeightTensor)
    weight = tensor.weight if lazy else _weight(tensor, name)
    return Constant(name, tensor.dtype.name, tuple(tensor.shape.numpy()), weight, lazy=lazy)


def _weight(tensor: Any, name: str) -> Weight:
    """A tensor of a file, memory-mapped, or one in memory."""
    shape, dtype = tuple(int(n) for n in tensor.shape.numpy()), _TORCH.get(tensor.dtype, torch.uint8)
    if tensor.dtype.bitwidth < 8 and shape:
        shape = (*shape[:-1], -(-shape[-1] * tensor.dtype.bitwidth // 8))
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    pages = _mapped(tensor) if isinstance(tensor, ir.ExternalTensor) else np.frombuffer(tensor.tobytes(), np.uint8)

    def read(start: int, stop: int) -> Tensor:
        rows = np.array(pages[start * row_bytes : stop * row_bytes] if shape else pages)
        part = (stop - start, *shape[1:]) if shape else ()
        return torch.from_numpy(rows).view(dtype).reshape(part) if rows.size else torch.empty(part, dtype=dtype)

    return Weight(shape, dtype, name, read)


def _mapped(tensor: Any) -> np.ndarray[Any, Any]:
    """The bytes of a tensor beside the model; an empty file cannot be mapped."""
    if not tensor.nbytes:
        return np.empty(0, np.uint8)
    return np.memmap(tensor.path, np.uint8, "r", tensor.offset or 0, (int(tensor.nbytes),))
