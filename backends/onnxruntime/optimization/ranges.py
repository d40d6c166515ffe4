"""Places that are counted from zero and then moved by a length are counted from that length on.

On CUDA a length is a number on the host: a sum of it and a row on the device takes a node that copies it, and with one
such node the provider captures no CUDA graph. `Range` takes its bounds on the host.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.tensors import is_constant
from moec.backends.onnxruntime.optimization.reshapes import numbers_of, remove_if_unread

ON_HOST = ("Squeeze", "Add", "Sub", "Mul", "Neg", "Max", "Min")  # of sizes, which the runtime keeps there


def start_ranges(model: ir.Model) -> int:
    """Let `Range(0, n, 1) + length` be `Range(length, length + n, 1)`, in place; returns how often. A length is a
    scalar that is made of shapes and constants alone."""
    return sum(_start(model.graph, node) for node in list(model.graph) if node.op_type == "Add" and not node.domain)


def _start(graph: ir.Graph, add: ir.Node) -> bool:
    for counted, length in (add.inputs, add.inputs[::-1]):
        row = None if counted is None else counted.producer()
        if row is None or length is None or row.op_type != "Range" or not (_is_scalar(length) and _is_size(length)):
            continue
        if numbers_of(row.inputs[0]) != [0] or numbers_of(row.inputs[2]) != [1]:
            continue
        emit = Emitter(graph, add)
        emit.replace(emit("Range", length, emit("Add", length, row.inputs[1]), row.inputs[2]))
        remove_if_unread(graph, row)
        return True
    return False


def _is_scalar(value: ir.Value) -> bool:
    node = value.producer()
    return len(value.shape) == 0 if value.shape is not None else node is not None and node.op_type == "Squeeze"


def _is_size(value: ir.Value | None) -> bool:
    """Whether a value is made of shapes and constants alone."""
    if value is None or is_constant(value):
        return value is not None
    node = value.producer()
    if node is None or node.domain:
        return False
    return node.op_type == "Shape" or (node.op_type in ON_HOST and all(map(_is_size, node.inputs)))
