"""A graph whose cache holds tokens only: place k of a row is its k-th token, padding has no place.

GroupQueryAttention reads each row of its cache from the first place on, as many as it is told. With a bias that hides
padding instead it takes neither flash attention nor the kernels for one token: at 2048 tokens it then holds all scores,
65 times the memory. So tokens are put before the padding of a call once, where they enter the graph, and what is said
of them goes back to its place where it leaves; all between computes each token by itself, see `token_order`.

Tokens and mask may be padded anywhere, as ever. Only the cache is another: what `cache_rows` does around a call for
those who hand in a cache with padding. A mask may be longer than the cache, for padding takes no room; but where one
buffer is both past and present, it may not be longer than that. So a step's shapes may stay as they are: a buffer and a
mask of a fixed length, the mask padded on the left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from moec.backends.onnx.attention import FLOAT
from moec.backends.onnx.cache_rows import COMPACT
from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.tensors import is_constant
from moec.program.decoder_signature import IDS, LOGITS, MASK

INT32 = int(ir.DataType.INT32)
LONGEST = 2**31  # more tokens than a call has


@dataclass(frozen=True)
class Rows:
    """What the operator is told of a call's rows. `last` `[B]` int32: each row's last place that is written; `total`
    `[]` int32: as many places are written at most, padding included."""

    last: ir.Value
    total: ir.Value


def put_tokens_first(model: ir.Model) -> Rows:
    """Let the graph compute a call's tokens before its padding, in place."""
    graph = model.graph
    ids, mask, logits = (_named(values, name) for values, name in (
        (graph.inputs, IDS), (graph.inputs, MASK), (graph.outputs, LOGITS)))  # fmt: skip
    emit = Emitter(graph, graph[0])
    emit.name = "tokens_first"
    readers = [(node, at, value) for value in (ids, mask) for node, at in value.uses() if node.op_type != "Shape"]
    length = emit("Shape", ids, start=1, end=2)
    whole = emit("Shape", mask, start=1, end=2)
    before = emit("Sub", whole, length)
    zero, one = emit.constant([0]), emit.constant([1])
    new = emit("Slice", mask, before, whole, one)
    past = emit("Slice", mask, zero, before, one)
    order = _order(emit, new, length)
    moved = {ids: emit("GatherElements", ids, order, axis=1)}
    moved[mask] = emit("Concat", past, emit("GatherElements", new, order, axis=1), axis=1)
    for value, other in moved.items():
        other.type, other.shape = value.type, value.shape
    for node, at, value in readers:
        node.replace_input_with(at, moved[value])
    _put_back(emit, _before_the_head(logits), new)
    model.metadata_props[COMPACT] = "1"
    return Rows(_last_places(emit, mask, whole, length), emit("Squeeze", emit("Cast", whole, to=INT32)))


def _named(values: Iterable[ir.Value], name: str) -> ir.Value:
    return next(v for v in values if v.name == name)


def _order(emit: Emitter, new: ir.Value, length: ir.Value) -> ir.Value:
    """Which of a call's tokens stands where, `[B, S]`: those of the text as they came, then the padding.

    No length is computed with: on CUDA a shape lies on the host, and a node of its own would copy it.
    """
    zero, one = emit.constant(0), emit.constant(1)
    places = emit("Range", zero, emit("Squeeze", length), one)
    rank = emit("Sub", emit("Mul", new, emit.constant(LONGEST)), places)  # no two alike: a sort need not be stable
    return emit.several(2, "TopK", rank, length, axis=1, largest=1, sorted=1)[1]


def _last_places(emit: Emitter, mask: ir.Value, whole: ir.Value, length: ir.Value) -> ir.Value:
    """Each row's last place that is written, `[B]` int32: all tokens of earlier calls come before the call's places,
    padding among these; that is the mask's tokens and the call's padding, less one.

    In float32, in which a GPU sums without cuDNN, and no sum over nothing, which it refuses. Counted, not computed with
    a length, see `_order`.
    """
    ones, one = emit("Cast", mask, to=int(FLOAT)), emit.number(1.0, FLOAT)
    start = emit("Sub", whole, emit("Max", length, emit.constant([1])))
    padding = emit("Sub", emit("Slice", ones, start, whole, emit.constant([1])), one)  # below zero
    counts = [emit("ReduceSum", v, emit.constant([1]), keepdims=0) for v in (ones, padding)]
    return emit("Cast", emit("Sub", emit("Sub", *counts), one), to=INT32)


def _put_back(emit: Emitter, rows: ir.Value, new: ir.Value) -> None:
    """Let all that reads rows `[B, S, ...]` find each token where it came in; what padding gets is some token's."""
    place = emit("Unsqueeze", emit("CumSum", new, emit.constant(1), exclusive=1), emit.constant([2]))
    readers, is_output = list(rows.uses()), rows.is_graph_output()
    node = rows.producer()
    assert node is not None
    back = ir.node("GatherND", [rows, place], {"batch_dims": 1}, name="tokens_first/back")
    back.outputs[0].name, back.outputs[0].type, back.outputs[0].shape = back.name, rows.type, rows.shape
    emit.graph.insert_after(node, back)
    for reader, at in readers:
        reader.replace_input_with(at, back.outputs[0])
    if is_output:
        name, rows.name = rows.name, f"{rows.name}/tokens_first"
        emit.graph.outputs[emit.graph.outputs.index(rows)] = back.outputs[0]
        back.outputs[0].name = name


def _before_the_head(logits: ir.Value) -> ir.Value:
    """What the product that makes the logits reads, where nothing else reads it; it is far smaller than these. Else the
    logits."""
    value = logits
    while (node := value.producer()) is not None and (value is logits or len(list(value.uses())) == 1):
        if node.op_type == "MatMul":
            rows = node.inputs[0]
            fits = rows is not None and rows.shape is not None and len(rows.shape) == 3
            return rows if fits and rows.producer() is not None and len(list(rows.uses())) == 1 else logits  # type: ignore[return-value, union-attr]
        inner = [v for v in node.inputs if v is not None and not is_constant(v)]
        if node.op_type not in ("Cast", "Mul", "Div", "Tanh", "Add", "Slice", "Identity") or len(inner) != 1:
            break  # what else goes in may be a token's too
        value = inner[0]
    return logits
