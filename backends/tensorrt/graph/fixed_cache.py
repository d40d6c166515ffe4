"""A decoder's cache as a buffer of fixed size that is written in place.

As captured, each call takes the past and gives it back longer, so shapes change with every token, the whole cache is
copied, and no step can be part of a CUDA graph. Here each cache input is a buffer `[batch, heads, capacity, size]`, its
size known to TensorRT when it builds. The new tokens are written behind the `cache_length` ones that are there
(`TensorScatter`, whose result TensorRT keeps in its input's memory), and the rest of the graph sees the first `view`
places of it, as many as `attention_mask` has.

That rest is left as it is, by a change of order. The model sees a past of `view - sequence` tokens that is padded on
the left, as texts in a batch are: token `j` of that order lies at place `j - offset` of the buffer, where
`offset = view - sequence - cache_length`. Windows, chunks and positions are those of that order, and attention does not
mind in which order keys are, if the mask has the same: the mask that goes in is brought into the model's order, and the
one that attention reads into the buffer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from moec.backends.onnx.attention import attention_nodes, read_attention
from moec.backends.onnx.emit import DOMAIN, Emitter
from moec.backends.tensorrt.fixed_signature import LENGTH, buffers
from moec.backends.tensorrt.graph.operators import table_of
from moec.program.conditions import Condition
from moec.program.decoder_signature import IDS, MASK, PAST, cache_inputs, growing_inputs, past_axis, present_name
from moec.program.signature import Input

WRITE = "TensorScatter"
OPSET = 24  # the first that has it


def can_be_fixed(edition: str, version: str) -> bool:
    """Whether a library's parser knows how to write in place."""
    return WRITE in table_of(edition, version).rules


def why_growing(inputs: Sequence[Input], conditions: Sequence[Condition]) -> str:
    """Why a program's cache cannot be of fixed size, as far as its signature says; empty when it can."""
    if not {IDS, MASK} <= {i.name for i in inputs} or not cache_inputs(inputs):
        return "it is no decoder with a cache"
    other = next((i for i in cache_inputs(inputs) if i not in growing_inputs(inputs)), None)
    if other is not None:
        return f"{other.name} is no cache that tokens are appended to"
    stated = next((c for c in conditions if PAST in c.names), None)
    return "" if stated is None else f"the capture states {stated}, of a past that grows"


def fix_cache(
    model: ir.Model, inputs: Sequence[Input], conditions: Sequence[Condition], capacity: int
) -> list[dict[str, Any]]:
    """Let a decoder's cache be buffers that are written in place, where its graph allows it.

    Args:
        model: as exported, attention still opaque; changed in place.
        inputs: the program's.
        conditions: the program's.
        capacity: places of a buffer.

    Returns:
        One record: `cache`, `fixed` or `growing`, `capacity` (0 where it grows), and `why`; none without a cache.
    """
    if not cache_inputs(inputs):
        return []
    graph = model.graph
    why = why_growing(inputs, conditions) or _why_not(graph, inputs)
    if why:
        return [{"cache": "growing", "capacity": 0, "why": why}]
    _rewrite(graph, inputs, capacity)
    model.opset_imports[""] = OPSET
    return [{"cache": "fixed", "capacity": capacity, "why": "buffers that are written in place, their length an input"}]


def _why_not(graph: ir.Graph, inputs: Sequence[Input]) -> str:
    by_name = {str(v.name): v for v in graph.inputs}
    joined = set()
    for spec in cache_inputs(inputs):
        readers = [node for node, _ in by_name[spec.name].uses() if not _counts(node, past_axis(spec))]
        if len(readers) != 1 or not _joins(readers[0], spec):
            return f"{spec.name} is read otherwise than to be continued"
        joined.add(readers[0].outputs[0])
    for node in attention_nodes(graph):
        if read_attention(node).mask is None or not joined & _made_of(node.inputs[1]):
            return f"{node.name} attends to something else than the cache, or without a mask"
    axes = {MASK: 1} | {spec.name: past_axis(spec) for spec in cache_inputs(inputs)}
    counts = (n for name, axis in axes.items() for n, _ in by_name[name].uses() if _counts(n, axis))
    counted = {value for node in counts for value in node.outputs}
    where = next((node for node, index in _reached(counted) if node.domain == DOMAIN and index != _MASK), None)
    return "" if where is None else f"{where.name} reads how long the past is, padding included"


_MASK = 3  # of an attention node's inputs
_SIZES = {"Reshape": 1, "Expand": 1, "Slice": 1, "Tile": 1, "ConstantOfShape": 0}  # their first input that is a size


def _reached(values: set[ir.Value]) -> list[tuple[ir.Node, int]]:
    """Every input that numbers get into, not as a size and not through an operator of the dialect."""
    todo, seen = list(values), set(values)
    found: list[tuple[ir.Node, int]] = []
    while todo:
        for node, index in todo.pop().uses():
            found.append((node, index))
            follows = node.domain == "" and node.op_type != "Shape" and index < _SIZES.get(node.op_type, 99)
            fresh = [v for v in node.outputs if v not in seen] if follows else []
            seen |= set(fresh)
            todo += fresh
    return found


def _joins(node: ir.Node, spec: Input) -> bool:
    """Whether a node is `Concat(past, new)`, and its result the present."""
    axis, rank = node.attributes.get_int("axis", 0), len(spec.shape)
    return (
        node.op_type == "Concat"
        and len(node.inputs) == 2
        and node.inputs[0] is not None
        and node.inputs[0].name == spec.name
        and axis % rank == past_axis(spec) == rank - 2 == 2
        and node.outputs[0].name == present_name(spec.name)
    )


def _counts(node: ir.Node, axis: int) -> bool:
    """Whether a node reads one dimension of its input."""
    start = node.attributes.get_int("start", 0)
    return node.op_type == "Shape" and node.attributes.get_int("end", -1) == start + 1 and start <= axis


def _made_of(value: ir.Value | None) -> set[ir.Value]:
    """Every value that a key is made of, up to the last operator of the dialect."""
    found: set[ir.Value] = set()
    todo = [value]
    while todo:
        one = todo.pop()
        if one is None or one in found:
            continue
        found.add(one)
        node = one.producer()
        todo += node.inputs if node is not None and node.domain == "" else ()
    return found


@dataclass(frozen=True)
class _Places:
    """What the graph's front computes, all int64.

    Attributes:
        view, offset: `[1]`. filled: how many places hold tokens after this call, `[1]`.
        places: `[view]`, 0 to view - 1.
        rows: where to write, `[batch]`.
    """

    view: ir.Value
    offset: ir.Value
    filled: ir.Value
    places: ir.Value
    rows: ir.Value


def _rewrite(graph: ir.Graph, inputs: Sequence[Input], capacity: int) -> None:
    by_name, fixed = {str(v.name): v for v in graph.inputs}, buffers(inputs, capacity)
    length = ir.Value(name=LENGTH, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    graph.inputs.append(length)
    front = Emitter(graph, graph[0])
    front.name = "cache"
    view, new = front("Shape", by_name[MASK], start=1, end=2), front("Shape", by_name[IDS], start=1, end=2)
    past = front("Sub", view, new)
    places = _Places(
        view,
        front("Sub", past, length),
        front("Add", length, new),
        front("Range", front.constant(0), front("Squeeze", view, front.constant([0])), front.constant(1)),
        front("Expand", length, front("Shape", by_name[IDS], start=0, end=1)),
    )
    own = set(graph[: list(graph).index(front.node)])
    _reorder_mask(front, by_name[MASK], places, own)
    _reorder_attention(graph, places)
    for spec in fixed[:-1]:
        by_name[spec.name].shape = ir.Shape(spec.shape)
    for spec in cache_inputs(inputs):
        _count_otherwise(by_name[spec.name], past_axis(spec), past)
        _write_in_place(graph, by_name[spec.name], places)


def _count_otherwise(cache: ir.Value, axis: int, past: ir.Value) -> None:
    """What asked for the length of the past gets that of the padded one."""
    for node, _ in list(cache.uses()):
        if node.op_type == "Shape" and node.attributes.get_int("start", 0) == axis:
            ir.convenience.replace_all_uses_with(node.outputs[0], past)


def _reorder_mask(front: Emitter, mask: ir.Value, places: _Places, own: set[ir.Node]) -> None:
    """From the buffer's places to the model's order: what comes before the text is padding."""
    users = [(node, index) for node, index in mask.uses() if node not in own]
    assert mask.dtype is not None
    place = front("Sub", places.places, places.offset)
    there = front("Gather", mask, front("Max", place, front.constant([0])), axis=1)
    text = front.cast(front("GreaterOrEqual", place, front.constant([0])), ir.DataType.BOOL, mask.dtype)
    ordered = front("Mul", there, text)
    for node, index in users:
        node.replace_input_with(index, ordered)


def _reorder_attention(graph: ir.Graph, places: _Places) -> None:
    """From the model's order to the buffer's places, once for each mask that layers share."""
    known: dict[ir.Value, ir.Value] = {}
    for node in attention_nodes(graph):
        mask = read_attention(node).mask
        assert mask is not None
        if mask not in known:
            emit = Emitter(graph, node)
            emit.name = f"cache/{mask.name}"
            last = emit("Sub", places.view, emit.constant([1]))
            order = emit("Min", emit("Add", places.places, places.offset), last)
            there, text = emit("Gather", mask, order, axis=3), emit("Less", places.places, places.filled)
            known[mask] = (
                emit("And", there, text)
                if mask.dtype == ir.DataType.BOOL
                else emit("Where", text, there, emit.number(_NEVER[mask.dtype], mask.dtype))
            )
            known[mask].type, known[mask].shape = mask.type, mask.shape
        node.replace_input_with(_MASK, known[mask])


_NEVER = {ir.DataType.FLOAT16: -3e4, ir.DataType.FLOAT: -3e38, ir.DataType.BFLOAT16: -3e38}


def _write_in_place(graph: ir.Graph, cache: ir.Value, places: _Places) -> None:
    """The present is the buffer itself, and who reads it looks at its first places."""
    node = next(node for node, _ in cache.uses() if node.op_type == "Concat")
    users, emit = list(node.outputs[0].uses()), Emitter(graph, node)
    written = emit(WRITE, cache, node.inputs[1], places.rows)
    seen = emit("Slice", written, emit.constant([0]), places.view, emit.constant([2]))
    seen.type, seen.shape = cache.type, node.outputs[0].shape
    emit.replace(written)
    written.shape = cache.shape
    for user, index in users:
        user.replace_input_with(index, seen)
