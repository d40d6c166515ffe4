"""Tensors that a model makes empty and fills part by part become one concatenation of the parts.

DeepSeek-V3 writes its keys so. torch.onnx makes each part a scatter of rows into a transposed copy of the whole, and a
transpose back.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from moec.backends.onnx.emit import take_place
from moec.backends.onnx.packed import remove_unread
from moec.backends.onnxruntime.optimization.reshapes import numbers_of


@dataclass(frozen=True)
class _Part:
    """What is written from `start` to `end` along `axis` of a tensor that `base` was before."""

    base: ir.Value
    axis: int
    start: int
    end: int
    source: ir.Value


def join_filled(model: ir.Model) -> int:
    """Replace tensors that parts of them fill from the first element to the last of an axis, in place; returns how
    many."""
    return sum(_join(model.graph, node) for node in list(model.graph) if node.op_type == "Transpose")


def _join(graph: ir.Graph, last: ir.Node) -> bool:
    whole = last.outputs[0]
    parts, value = list[_Part](), whole
    while (part := _part(value)) is not None:
        parts.append(part)
        value = part.base
    made, axes = value.producer(), {part.axis for part in parts}
    if made is None or made.op_type != "ConstantOfShape" or len(axes) != 1 or whole.shape is None:
        return False
    axis = axes.pop()
    size = whole.shape[axis]
    parts.sort(key=lambda part: part.start)
    if not isinstance(size, int) or [p.start for p in parts] + [size] != [0] + [min(p.end, size) for p in parts]:
        return False
    joined = ir.node("Concat", [p.source for p in parts], {"axis": axis}, name=f"{whole.name}/joined")
    graph.insert_before(last, joined)
    before = list(last.inputs)
    take_place(joined.outputs[0], whole)
    graph.remove(last, safe=True)
    remove_unread(graph, before)
    return True


def _part(value: ir.Value) -> _Part | None:
    """How torch.onnx writes `slice_scatter`: `Transpose(ScatterND(Transpose(base), places, Transpose(source)))`, where
    all turn the axis to the front and back."""
    back = _made(value, "Transpose")
    scatter = _made(back.inputs[0], "ScatterND") if back is not None else None
    if back is None or scatter is None or scatter.attributes.get_string("reduction", "none") != "none":
        return None
    turns = [back, *(_made(scatter.inputs[n], "Transpose") for n in (0, 2))]
    perms = {tuple(turn.attributes.get_ints("perm", [])) if turn is not None else () for turn in turns}
    bounds, perm = _bounds(scatter.inputs[1]), list(perms.pop())
    if perms or not perm or bounds is None:
        return None
    axis = perm[0]
    swapped = [axis if n == 0 else 0 if n == axis else n for n in range(len(perm))]
    base, source = (turn.inputs[0] if turn is not None else None for turn in turns[1:])
    if perm != swapped or base is None or source is None:
        return None
    return _Part(base, axis, *bounds, source)


def _bounds(places: ir.Value | None) -> tuple[int, int] | None:
    """From where to where places `[n, 1]` go that are `Unsqueeze(Slice(Range(0, …, 1), start, end))`."""
    column = _made(places, "Unsqueeze")
    cut = _made(column.inputs[0], "Slice") if column is not None else None
    every = _made(cut.inputs[0], "Range") if cut is not None else None
    if cut is None or every is None or numbers_of(every.inputs[0]) != [0] or numbers_of(every.inputs[2]) != [1]:
        return None
    start, end, axis, step = ([*map(numbers_of, cut.inputs[1:]), [0], [1]])[:4]
    if axis not in ([0], None) or step != [1] or not start or not end or start[0] < 0 or end[0] < 0:
        return None
    return start[0], end[0]


def _made(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node of a kind that makes a value."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op and node.domain == "" else None
