"""Opaque `moec::Attention` nodes, read, and attention as plain products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from moec.backends.onnx.emit import DOMAIN, Emitter

OPERATOR = "Attention"
FLOAT, _LOW = ir.DataType.FLOAT, -3e38
BY_HEAD = [0, 2, 1, 3]  # [B, S, N, D] becomes [B, N, S, D], and the other way round
Scores = Callable[[Emitter, ir.Value, ir.Value, float, ir.DataType], ir.Value]


@dataclass(frozen=True)
class Attention:
    """One node, read. query `[B, N, S, D]`, key `[B, G, T, D]`, value `[B, G, T, V]`, mask `[B, 1 or N, S, T]`,
    sinks `[N]`."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    sinks: ir.Value | None
    scale: float
    softcap: float
    causal: bool

    @property
    def dtype(self) -> ir.DataType:
        return self.query.dtype or FLOAT

    @property
    def heads(self) -> int:
        return size_of(self.query, 1)

    @property
    def groups(self) -> int:
        """Key-value heads, G."""
        return size_of(self.key, 1)


def attention_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The opaque attention nodes of a graph, in order."""
    return [node for node in list(graph) if node.domain == DOMAIN and node.op_type == OPERATOR]


def read_attention(node: ir.Node) -> Attention:
    """Read a node of domain `moec`."""
    inputs = [*node.inputs, None, None][:5]
    query, key, value, mask, sinks = inputs
    assert query is not None and key is not None and value is not None
    scale, softcap, causal = (node.attributes[name] for name in ("scale", "softcap", "causal"))
    return Attention(query, key, value, mask, sinks, scale.as_float(), softcap.as_float(), bool(causal.as_int()))


def size_of(value: ir.Value, axis: int) -> int:
    """A dimension that must be fixed."""
    size = value.shape[axis] if value.shape is not None else None
    assert isinstance(size, int), f"{value.name} has no fixed dimension {axis}"
    return size


def emit_bias(emit: Emitter, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
    """What is added to the scores, in float32: 0 where a token may look. Finite even after a score is added in the
    operator's own dtype, so that a row of padding, which may see nothing, stays a number: the next layer would spread a
    NaN. And above the lowest number there is: of a row of those, ONNX Runtime's standard operator makes zeros, and
    eager the mean of all values."""
    given = mask.dtype or FLOAT
    if given == FLOAT:
        return emit("Max", mask, emit.number(_LOW, FLOAT))
    if given != ir.DataType.BOOL:
        return emit.cast(mask, given, FLOAT)
    return emit(
        "Where", mask, emit.number(0.0, FLOAT), emit.number(-3e4 if dtype == ir.DataType.FLOAT16 else _LOW, FLOAT)
    )


def plain_scores(emit: Emitter, query: ir.Value, key: ir.Value, scale: float, dtype: ir.DataType) -> ir.Value:
    """`query @ key^T * scale` in standard operators; the query is scaled first, so that half precision does not
    overflow."""
    scaled = query if scale == 1.0 else emit("Mul", query, emit.number(scale, dtype))
    return emit("MatMul", scaled, emit("Transpose", key, perm=[0, 1, 3, 2]))


def emit_plain(
    emit: Emitter,
    block: Attention,
    bias: ir.Value | None,
    scores_of: Scores = plain_scores,
    folded: ir.Value | None = None,
) -> ir.Value:
    """Attention `[B, S, N, V]`; a bias `[B, 1, S, T]` in float32 is added to the scores.

    The query heads of a key-value head are folded into its rows, so no key is copied. `folded` is the bias for such
    rows, `[B, 1, N/G * S, T]`, see `fold_bias`: with it the scores need not be unfolded.
    """
    heads, groups = block.heads, block.groups
    stays = heads == groups or (folded is not None and block.sinks is None)  # as it is folded
    fold = emit.constant([0, groups, -1, size_of(block.query, 3)])
    query = emit("Reshape", block.query, fold) if heads != groups else block.query
    scores = scores_of(emit, query, block.key, block.scale, block.dtype)
    scores = scores if stays else emit("Reshape", scores, emit.constant([0, heads, -1, 0]))
    shares = _softmax(
        emit, block, emit.cast(scores, block.dtype, FLOAT), folded if stays and folded is not None else bias
    )
    shares = shares if stays else emit("Reshape", shares, emit.constant([0, groups, -1, 0]))
    mixed = emit("MatMul", emit.cast(shares, FLOAT, block.dtype), block.value)
    mixed = emit("Reshape", mixed, emit.constant([0, heads, -1, size_of(block.value, 3)])) if heads != groups else mixed
    return emit("Transpose", mixed, perm=BY_HEAD)


def fold_bias(emit: Emitter, block: Attention, bias: ir.Value) -> ir.Value:
    """The bias once for each query head of a key-value head, `[B, 1, N/G * S, T]`: what layers share, so that none
    unfolds its scores. One that each query head has of its own is folded as the queries are, `[B, G, N/G * S, T]`."""
    if block.mask is not None and block.mask.shape is not None and block.mask.shape[1] == block.heads:
        return emit("Reshape", bias, emit.constant([0, block.groups, -1, 0]))
    return emit("Concat", *[bias] * (block.heads // block.groups), axis=2)


def _softmax(emit: Emitter, block: Attention, scores: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Shares `[B, N, S, T]` in float32."""
    if block.softcap:
        cap = emit.number(block.softcap, FLOAT)
        scores = emit("Mul", emit("Tanh", emit("Div", scores, cap)), cap)
    if bias is not None:
        scores = emit("Add", scores, bias)
    if block.sinks is None:
        return emit("Softmax", scores, axis=-1)
    column = emit("Reshape", emit.cast(block.sinks, block.sinks.dtype or FLOAT, FLOAT), emit.constant([1, -1, 1, 1]))
    shape = emit("Concat", emit("Shape", scores, start=0, end=3), emit.constant([1]), axis=0)
    shares = emit("Softmax", emit("Concat", scores, emit("Expand", column, shape), axis=-1), axis=-1)
    return emit("Slice", shares, emit.constant([0]), emit.constant([-1]), emit.constant([3]))
