"""From opaque `moec::Attention` nodes to what ONNX Runtime runs, the form chosen from measurement.

Few new tokens: plain products. On a CPU they take half the time of the GroupQueryAttention operator for one token after 512 and, unlike it,
continue several texts by several tokens each. A long prompt: that operator, which leaves out what comes later than each token and
takes three quarters of the time for 512 tokens, half for 2048 (benchmarks/attention_cpu.py). An `If` on the lengths chooses at run time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.backends.onnx.attention import FLOAT, OPERATOR, Attention, attention_nodes, emit_bias, emit_plain, fold_bias, read_attention, size_of
from moec.backends.onnx.emit import MICROSOFT, Emitter

PROMPT = 128  # new tokens from which on the operator for long prompts wins


def lower_attention(model: ir.Model, provider: str = "cpu") -> list[dict[str, str]]:
    """Replace every `moec::Attention` node of the main graph, in place.

    Args:
        model: opset 20 or newer in the standard domain.
        provider: `cpu` or `cuda`; CUDA's GroupQueryAttention takes half precision only.

    Returns:
        One record a node: `node`, `op`, `formulation` (`plain` or `plain, long prompts grouped`) and `why`.
    """
    biases: dict[object, ir.Value] = {}
    facts = [_lower_node(model.graph, node, provider, biases) for node in attention_nodes(model.graph)]
    if facts:
        model.opset_imports[MICROSOFT] = 1
    return facts


def _lower_node(graph: ir.Graph, node: ir.Node, provider: str, biases: dict[object, ir.Value]) -> dict[str, str]:
    """`biases` holds what layers with the same mask share: by the mask, and by the mask and how many heads are folded."""
    block, emit = read_attention(node), Emitter(graph, node)
    refusal = why_plain(block) or ("half precision only on CUDA" if provider == "cuda" and block.dtype == FLOAT else "")
    long = None if refusal else _is_long_prompt(emit, block)
    bias = folded = None
    if block.mask is not None:
        bias = biases[block.mask] = biases.get(block.mask) or emit_bias(emit, block.mask, block.dtype)
        shared = (block.mask, block.heads // block.groups, refusal)
        folded = biases[shared] = biases.get(shared) or _folded_bias(emit, block, bias, long)
    if long is None or bias is None:
        y, why = emit_plain(emit, block, bias, _fused_scores, folded), refusal
    else:
        then, otherwise = emit.branch("prompt"), emit.branch("tokens")
        y = emit.choose(long, (then, _grouped_query(then, block, bias)), (otherwise, emit_plain(otherwise, block, bias, _fused_scores, folded)))
        why = f"faster from {PROMPT} new tokens on without a cache"
    emit.replace(y)
    return {"node": emit.name, "op": OPERATOR, "formulation": "plain" if refusal else "plain, long prompts grouped", "why": why}


def _folded_bias(emit: Emitter, block: Attention, bias: ir.Value, long: ir.Value | None) -> ir.Value:
    """The bias for folded heads; a long prompt, for which nobody reads it, keeps the plain one instead of copies."""
    if block.heads == block.groups:
        return bias
    if long is None:
        return fold_bias(emit, block, bias)
    then, otherwise = emit.branch("prompt"), emit.branch("tokens")
    return emit.choose(long, (then, then("Identity", bias)), (otherwise, fold_bias(otherwise, block, bias)))


def _fused_scores(emit: Emitter, query: ir.Value, key: ir.Value, scale: float, dtype: ir.DataType) -> ir.Value:
    return emit("FusedMatMul", query, key, domain=MICROSOFT, transB=1, alpha=scale)


def why_plain(block: Attention) -> str:
    """Why the operator for long prompts would be wrong or is not there; empty when it is right."""
    if not block.causal or block.mask is None:
        return "a token may look at later ones"
    if block.sinks is not None:
        return "sinks"
    size = size_of(block.query, 3)
    if size != size_of(block.value, 3):
        return f"keys of {size} and values of {size_of(block.value, 3)}"
    return "" if size % 8 == 0 else f"a head size of {size}, no multiple of 8"


# ---------------------------------------------------------------------- long prompts
def _is_long_prompt(emit: Emitter, block: Attention) -> ir.Value:
    new = emit("Shape", block.query, start=2, end=3)
    long, length = emit("GreaterOrEqual", new, emit.constant([PROMPT])), _length(block.query)
    if length is None or length != _length(block.key):  # there may be a cache
        long = emit("And", emit("Equal", new, emit("Shape", block.key, start=2, end=3)), long)
    return emit("Squeeze", long)


def _length(value: ir.Value) -> str | None:
    """The name or number of the dimension that counts tokens, where it has one."""
    name = None if value.shape is None else str(value.shape[2])
    return None if name == "None" else name


def _grouped_query(emit: Emitter, block: Attention, bias: ir.Value) -> ir.Value:
    """`[B, S, N, V]` by GroupQueryAttention on a prompt without a cache; every row is as long as the longest, padding is the bias's business."""
    tokens = [emit("Reshape", emit("Transpose", v, perm=[0, 2, 1, 3]), emit.constant([0, 0, -1])) for v in (block.query, block.key, block.value)]
    total = emit("Cast", emit("Shape", block.key, start=2, end=3), to=int(ir.DataType.INT32))
    last = emit("Sub", total, emit.constant(np.array([1], np.int32)))
    lengths = emit("Expand", last, emit("Shape", block.query, start=0, end=1))
    inputs = [*tokens, None, None, lengths, emit("Squeeze", total), None, None, None, emit.cast(bias, FLOAT, block.dtype)]
    attributes = {"num_heads": block.heads, "kv_num_heads": block.groups, "scale": block.scale, "softcap": block.softcap}
    y = emit.several(3, "GroupQueryAttention", *inputs, domain=MICROSOFT, **attributes)[0]
    return emit("Reshape", y, emit.constant([0, 0, block.heads, -1]))
