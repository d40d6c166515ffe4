"""A graph with a fixed cache as the program's own signature has it, so that ONNX Runtime can be asked what the program
is asked: a front that puts the past into buffers, and an end that cuts the present out of them.

The free places of the buffers hold numbers and a mask that are not zero, as they do when another text was there before,
and a call looks at some of them where there are any: a graph that reads them is found out by every proof.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moec.backends.onnx.attention import size_of
from moec.backends.onnx.emit import Emitter
from moec.backends.tensorrt.fixed_signature import LENGTH
from moec.program.conditions import Condition
from moec.program.decoder_signature import IDS, MASK, PAST, TOTAL, is_present

FREE = 3  # places of a view behind the text
STALE = 7.0  # what free places hold
_AXIS = 2  # of a buffer's places


def grow(model: ir.Model) -> Condition | None:
    """Give a graph the signature of a program whose cache grows, in place. Returns what the buffers have room for; None
    for a graph that has none."""
    graph, by_name = model.graph, {str(v.name): v for v in model.graph.inputs}
    if LENGTH not in by_name:
        return None
    caches = [v for v in graph.inputs if v.name not in (IDS, MASK, LENGTH)]
    capacity = size_of(caches[0], _AXIS)
    users = {value: list(value.uses()) for value in (*caches, by_name[MASK])}
    emit = Emitter(graph, graph[0])
    emit.name = "grown"
    length = emit("Shape", caches[0], start=_AXIS, end=_AXIS + 1)
    total = emit("Add", length, emit("Shape", by_name[IDS], start=1, end=2))
    free = emit("Sub", emit.constant([capacity]), length)
    for cache in caches:
        _lengthen(emit, cache, free, _AXIS, PAST, users[cache])
    beyond = emit("Min", emit("Sub", emit.constant([capacity]), total), emit.constant([FREE]))
    _lengthen(emit, by_name[MASK], beyond, 1, TOTAL, users[by_name[MASK]])
    ir.convenience.replace_all_uses_with(by_name[LENGTH], length)
    graph.inputs.remove(by_name[LENGTH])
    for index, value in enumerate(graph.outputs):
        if is_present(str(value.name)):
            _cut(graph, index, total)
    return Condition(f"{TOTAL} <= {capacity}")


def _lengthen(
    emit: Emitter, value: ir.Value, free: ir.Value, axis: int, dim: str, users: Sequence[tuple[ir.Node, int]]
) -> None:
    """An input with so many places behind it that hold something; its own size along them is called `dim`."""
    assert value.shape is not None and value.dtype is not None
    before, after = emit("Shape", value, start=0, end=axis), emit("Shape", value, start=axis + 1)
    stale = emit("Expand", _stale(emit, value.dtype), emit("Concat", before, free, after, axis=0))
    whole = emit("Concat", value, stale, axis=axis)
    whole.type, whole.shape = value.type, value.shape
    for node, index in users:
        node.replace_input_with(index, whole)
    value.shape = ir.Shape([dim if n == axis else d for n, d in enumerate(value.shape)])


def _stale(emit: Emitter, dtype: ir.DataType) -> ir.Value:
    return emit.number(STALE, dtype) if dtype.is_floating_point() else emit.constant(1, np.int64)


def _cut(graph: ir.Graph, index: int, total: ir.Value) -> None:
    """Let an output end where the text does."""
    whole, emit = graph.outputs[index], Emitter(graph, graph[-1])
    name = str(whole.name)
    assert whole.shape is not None
    shape = ir.Shape([TOTAL if n == _AXIS else d for n, d in enumerate(whole.shape)])
    whole.name = f"{name}.buffer"
    ends, cut = (emit.constant([0]), total, emit.constant([_AXIS])), ir.Value(name=name, type=whole.type, shape=shape)
    graph.append(ir.node("Slice", [whole, *ends], outputs=[cut], name=f"{name}/cut"))
    graph.outputs[index] = cut
