"""From opaque `moec::Attention` nodes to what ONNX Runtime runs, the form chosen from measurement.

Few new tokens: plain products. On a CPU they take half the time of the GroupQueryAttention operator for one token after 512 and, unlike it,
continue several texts by several tokens each. A long prompt: that operator, which leaves out what comes later than each token and
takes three quarters of the time for 512 tokens, half for 2048 (benchmarks/attention_cpu.py). An `If` on the lengths chooses at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from moec.backends.onnx.emit import MICROSOFT, Emitter

DOMAIN, OPERATOR = "moec", "Attention"
PROMPT = 128  # new tokens from which on the operator for long prompts wins
FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class _Attention:
    """One node, read. query `[B, N, S, D]`, key `[B, G, T, D]`, value `[B, G, T, V]`, mask `[B, 1, S, T]`, sinks `[N]`."""

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
        return _size(self.query, 1)

    @property
    def groups(self) -> int:
        """Key-value heads, G."""
        return _size(self.key, 1)

    @property
    def why_plain(self) -> str:
        """Why the operator for long prompts would be wrong or is not there; empty when it is right."""
        if not self.causal or self.mask is None:
            return "a token may look at later ones"
        if self.sinks is not None:
            return "sinks"
        size = _size(self.query, 3)
        if size != _size(self.value, 3):
            return f"keys of {size} and values of {_size(self.value, 3)}"
        return "" if size % 8 == 0 else f"a head size of {size}, no multiple of 8"


def lower_attention(model: ir.Model, provider: str = "cpu") -> list[dict[str, str]]:
    """Replace every `moec::Attention` node of the main graph, in place.

    Args:
        model: opset 20 or newer in the standard domain.
        provider: `cpu` or `cuda`; CUDA's GroupQueryAttention takes half precision only.

    Returns:
        One record a node: `node`, `op`, `formulation` (`plain` or `plain, long prompts grouped`) and `why`.
    """
    biases: dict[ir.Value, ir.Value] = {}
    nodes = [node for node in list(model.graph) if node.domain == DOMAIN and node.op_type == OPERATOR]
    facts = [_lower_node(model.graph, node, provider, biases) for node in nodes]
    if facts:
        model.opset_imports[MICROSOFT] = 1
    return facts


def _lower_node(graph: ir.Graph, node: ir.Node, provider: str, biases: dict[ir.Value, ir.Value]) -> dict[str, str]:
    block, emit = _read(node), Emitter(graph, node)
    bias = None
    if block.mask is not None:  # layers share their masks
        bias = biases[block.mask] = biases.get(block.mask) or _bias(emit, block.mask, block.dtype)
    refusal = block.why_plain or ("half precision only on CUDA" if provider == "cuda" and block.dtype == FLOAT else "")
    if refusal or bias is None:
        y, why = _plain(emit, block, bias), refusal
    else:
        long = _is_long_prompt(emit, block)
        then, otherwise = emit.branch("prompt"), emit.branch("tokens")
        y = emit.choose(long, (then, _grouped_query(then, block, bias)), (otherwise, _plain(otherwise, block, bias)))
        why = f"faster from {PROMPT} new tokens on without a cache"
    emit.replace(y)
    return {"node": emit.name, "op": OPERATOR, "formulation": "plain" if refusal else "plain, long prompts grouped", "why": why}


def _read(node: ir.Node) -> _Attention:
    inputs = [*node.inputs, None, None][:5]
    query, key, value, mask, sinks = inputs
    assert query is not None and key is not None and value is not None
    scale, softcap, causal = (node.attributes[name] for name in ("scale", "softcap", "causal"))
    return _Attention(query, key, value, mask, sinks, scale.as_float(), softcap.as_float(), bool(causal.as_int()))


def _size(value: ir.Value, axis: int) -> int:
    size = value.shape[axis] if value.shape is not None else None
    assert isinstance(size, int), f"{value.name} has no fixed dimension {axis}"
    return size


def _bias(emit: Emitter, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
    """What is added to the scores, in float32: 0 where a token may look. Finite even after a score is added in the operator's own dtype,
    so that a row of padding, which may see nothing, stays a number: the next layer would spread a NaN."""
    if mask.dtype != ir.DataType.BOOL:
        return emit.cast(mask, mask.dtype or FLOAT, FLOAT)
    return emit("Where", mask, emit.number(0.0, FLOAT), emit.number(-3e4 if dtype == ir.DataType.FLOAT16 else -3e38, FLOAT))


# ---------------------------------------------------------------------- plain products
def _plain(emit: Emitter, block: _Attention, bias: ir.Value | None) -> ir.Value:
    """`[B, S, N, V]`; the query heads of a key-value head are folded into its rows, so no key is copied."""
    heads, groups = block.heads, block.groups
    fold = emit.constant([0, groups, -1, _size(block.query, 3)])
    query = emit("Reshape", block.query, fold) if heads != groups else block.query
    scores = emit("FusedMatMul", query, block.key, domain=MICROSOFT, transB=1, alpha=block.scale)
    scores = emit("Reshape", scores, emit.constant([0, heads, -1, 0])) if heads != groups else scores
    shares = _softmax(emit, block, emit.cast(scores, block.dtype, FLOAT), bias)
    shares = emit("Reshape", shares, emit.constant([0, groups, -1, 0])) if heads != groups else shares
    mixed = emit("MatMul", emit.cast(shares, FLOAT, block.dtype), block.value)
    mixed = emit("Reshape", mixed, emit.constant([0, heads, -1, _size(block.value, 3)])) if heads != groups else mixed
    return emit("Transpose", mixed, perm=[0, 2, 1, 3])


def _softmax(emit: Emitter, block: _Attention, scores: ir.Value, bias: ir.Value | None) -> ir.Value:
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


# ---------------------------------------------------------------------- long prompts
def _is_long_prompt(emit: Emitter, block: _Attention) -> ir.Value:
    new, total = (emit("Shape", v, start=2, end=3) for v in (block.query, block.key))
    both = emit("And", emit("Equal", new, total), emit("GreaterOrEqual", new, emit.constant([PROMPT])))
    return emit("Squeeze", both)


def _grouped_query(emit: Emitter, block: _Attention, bias: ir.Value) -> ir.Value:
    """`[B, S, N, V]` by GroupQueryAttention on a prompt without a cache; every row is as long as the longest, padding is the bias's business."""
    tokens = [emit("Reshape", emit("Transpose", v, perm=[0, 2, 1, 3]), emit.constant([0, 0, -1])) for v in (block.query, block.key, block.value)]
    total = emit("Cast", emit("Shape", block.key, start=2, end=3), to=int(ir.DataType.INT32))
    last = emit("Sub", total, emit.constant(np.array([1], np.int32)))
    lengths = emit("Expand", last, emit("Shape", block.query, start=0, end=1))
    inputs = [*tokens, None, None, lengths, emit("Squeeze", total), None, None, None, emit.cast(bias, FLOAT, block.dtype)]
    attributes = {"num_heads": block.heads, "kv_num_heads": block.groups, "scale": block.scale, "softcap": block.softcap}
    y = emit.several(3, "GroupQueryAttention", *inputs, domain=MICROSOFT, **attributes)[0]
    return emit("Reshape", y, emit.constant([0, 0, block.heads, -1]))
