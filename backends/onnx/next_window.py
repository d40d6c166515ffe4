"""The window that a short convolution leaves for the next call, taken from the operator that has it anyway.

transformers keeps the last W inputs of each channel, or those before a text's end where padding follows it: a
concatenation, and a look-up of each number. The operator's second result is the last W of all. Measured on a CPU (one
thread, 3,072 channels, kernel 4, W = 4), convolution and window for one token: 88 µs by concatenation and look-up, 39
by the operator. So an `If` takes the operator's where no text ends before the call does, and looks up where one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from moec.backends.onnx.emit import Emitter, take_place

ALONG = (2, -1)  # the axis of tokens in [B, C, S]


@dataclass(frozen=True)
class NextWindow:
    """How a graph makes the next window `[B, C, W]`.

    Attributes:
        window: the last one. x: the new inputs `[B, C, S]`. columns: `[B, 1, W]`, which columns of both it keeps.
        shape: that `columns` are expanded to. node: its last node.
    """

    window: ir.Value
    x: ir.Value
    columns: ir.Value
    shape: ir.Value
    node: ir.Node


def read_next_window(window: ir.Value, x: ir.Value, before: ir.Node) -> NextWindow | None:
    """What a graph looks up in `window` and `x` side by side, where it is an output and nothing else reads it; only
    what stands `before` a node, in front of which other nodes may take its place."""
    for whole, _ in window.uses():
        if whole.op_type != "Concat" or list(whole.inputs) != [window, x] or _axis(whole) not in ALONG:
            continue
        for node, _ in whole.outputs[0].uses():
            found = _read(window, x, node) if node.op_type == "GatherElements" and _axis(node) in ALONG else None
            if found is not None and _stands_before(node, before):
                return found
    return None


def _stands_before(node: ir.Node, other: ir.Node) -> bool:
    assert other.graph is not None
    return next(n for n in other.graph if n is node or n is other) is node


def _read(window: ir.Value, x: ir.Value, node: ir.Node) -> NextWindow | None:
    made, index = node.outputs[0], node.inputs[1]
    expand = None if index is None else index.producer()
    if expand is None or expand.op_type != "Expand" or not made.is_graph_output() or made.uses():
        return None
    columns, shape = expand.inputs
    fits = columns is not None and columns.shape is not None and window.shape is not None and len(columns.shape) == 3
    if not fits or shape is None or (columns.shape[1], columns.shape[2]) != (1, window.shape[2]):  # type: ignore[union-attr, index]
        return None
    assert columns is not None
    return NextWindow(window, x, columns, shape, node)


def emit_next_window(emit: Emitter, found: NextWindow, last: ir.Value) -> None:
    """Let `last`, the last W columns of window and inputs, take the place of what was looked up where they are
    equal. Each layer asks that anew: equal nodes are shared by a later step."""
    then, otherwise = emit.branch("all"), emit.branch("some")
    whole = otherwise("Concat", found.window, found.x, axis=2)
    looked_up = otherwise("GatherElements", whole, otherwise("Expand", found.columns, found.shape), axis=2)
    result = emit.choose(_are_the_last(emit, found), (then, then("Identity", last)), (otherwise, looked_up))
    whole_node, expand = (v.producer() for v in found.node.inputs if v is not None)
    take_place(result, found.node.outputs[0])
    emit.graph.remove(found.node, safe=True)
    for node in (whole_node, expand):
        if node is not None and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            emit.graph.remove(node, safe=True)


def _are_the_last(emit: Emitter, found: NextWindow) -> ir.Value:
    """Whether the columns are the last W of W + S, in each text: a bool without dimensions."""
    assert found.window.shape is not None
    width = int(found.window.shape[2])  # type: ignore[arg-type]
    last = emit("Add", emit("Shape", found.x, start=2, end=3), emit.constant(list(range(width))))
    equal = emit("Cast", emit("Equal", found.columns, last), to=int(ir.DataType.INT32))
    return emit("Cast", emit("ReduceMin", equal, keepdims=0), to=int(ir.DataType.BOOL))


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("axis", 0)
