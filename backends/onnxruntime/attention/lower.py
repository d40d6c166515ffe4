"""From opaque `moec::Attention` nodes to what ONNX Runtime runs, the form chosen from measurement
(benchmarks/attention_cpu.py).

A decoder on a CPU: GroupQueryAttention, which keeps the cache itself, see `kv_cache`. What that cannot do: few new
tokens after a cache are plain products, which continue several texts by several tokens each. Without a cache, the
standard operator (opset 23) takes 0.7 to 0.9 of their time; a long prompt: GroupQueryAttention, which leaves out what
comes later than each token and takes 0.6 of it for 2048. An `If` on the lengths chooses at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import onnx_ir as ir

from moec.backends.onnx.attention import (
    BY_HEAD,
    FLOAT,
    OPERATOR,
    Attention,
    attention_nodes,
    emit_bias,
    emit_plain,
    fold_bias,
    read_attention,
)
from moec.backends.onnx.emit import MICROSOFT, Emitter
from moec.backends.onnxruntime.attention.compact import put_tokens_first
from moec.backends.onnxruntime.attention.grouped_query import by_token, emit_grouped_query, lengths, why_not_grouped
from moec.backends.onnxruntime.attention.kv_cache import (
    emit_with_cache,
    emit_with_rows,
    let_the_mask_tell_lengths,
    read_caches,
)

STANDARD_OPSET, STANDARD_IR = 23, 11  # the first with the standard operator
# new tokens without a cache from which on the standard operator is chosen; asking takes as long as it saves for fewer
PROMPT = 8
GROUPED, LONG = 128, 1024  # from which on GroupQueryAttention wins over plain products, and over the standard operator

CACHED = "grouped with its cache"
COMPACTED = f"{CACHED}, tokens before padding"
Form = Callable[[Emitter], ir.Value]


def lower_attention(model: ir.Model, provider: str = "cpu", windows: Sequence[int | None] = ()) -> list[dict[str, str]]:
    """Replace every `moec::Attention` node of the main graph, in place.

    Args:
        model: opset 20 or newer in the standard domain; raised where a node needs that.
        provider: `cpu` or `cuda`; CUDA's GroupQueryAttention takes half precision only.
        windows: of the nodes in order, see `windows.compact_windows`; none where padding cannot be moved.

    Returns:
        One record a node: `node`, `op`, `formulation` (`grouped with its cache`, or `plain` or `standard`, and what
            prompts get: `prompts
        standard`, `long prompts grouped`) and `why`.
    """
    nodes = attention_nodes(model.graph)
    if provider == "cuda" and _all_compact(nodes, windows):
        return _lower_compact(model, nodes, windows)
    biases: dict[object, ir.Value] = {}
    facts = [_lower_node(model.graph, node, provider, biases) for node in nodes]
    if facts:
        model.opset_imports[MICROSOFT] = 1
    if any("standard" in fact["formulation"] for fact in facts):
        model.opset_imports[""] = max(model.opset_imports[""], STANDARD_OPSET)
        model.ir_version = max(model.ir_version, STANDARD_IR)
    let_the_mask_tell_lengths(model)
    return facts


def _all_compact(nodes: Sequence[ir.Node], windows: Sequence[int | None]) -> bool:
    """Whether every node is one that the operator computes from its cache and a window; a cache is compact in all
    layers or in none."""
    blocks = [read_attention(node) for node in nodes]
    return (
        bool(blocks)
        and len(blocks) == len(windows)
        and None not in windows
        and all(
            not why_not_grouped(block, "cuda", compact=True)
            and (read_caches(block) is not None or not _may_have_cache(block))
            for block in blocks
        )
    )


def _lower_compact(model: ir.Model, nodes: Sequence[ir.Node], windows: Sequence[int | None]) -> list[dict[str, str]]:
    rows, facts = put_tokens_first(model), []
    for node, window in zip(nodes, windows, strict=True):
        block, emit = read_attention(node), Emitter(model.graph, node)
        emit.replace(emit_with_rows(emit, block, read_caches(block), (rows.last, rows.total), window or 0))
        seen = f"the last {window} tokens" if window else "all tokens before it"
        why = f"no mask: tokens come before padding, and each sees {seen}"
        facts.append({"node": emit.name, "op": OPERATOR, "formulation": COMPACTED, "why": why})
    model.opset_imports[MICROSOFT] = 1
    let_the_mask_tell_lengths(model)
    return facts


def _lower_node(graph: ir.Graph, node: ir.Node, provider: str, biases: dict[object, ir.Value]) -> dict[str, str]:
    """`biases` holds what layers with the same mask share: by the mask, and by the mask and how many heads are
    folded."""
    block, emit = read_attention(node), Emitter(graph, node)
    cached, bias = _may_have_cache(block), None
    if block.mask is not None:
        bias = biases[block.mask] = biases.get(block.mask) or emit_bias(emit, block.mask, block.dtype)
    not_standard, not_grouped = why_not_standard(block, provider), why_not_grouped(block, provider)
    caches = read_caches(block) if provider == "cpu" and not not_grouped else None
    if caches is not None and bias is not None:
        apart = _plain if not_standard else _standard
        emit.replace(emit_with_cache(emit, block, caches, bias, partial(apart, bias=bias)))
        why = "the operator appends to the cache; it continues one text by several tokens, or several by one"
        formulation = f"{CACHED}, several texts {'plain' if not_standard else 'standard'}"
        return {"node": emit.name, "op": OPERATOR, "formulation": formulation, "why": why}
    standard = partial(_standard, block=block, bias=bias)
    prompts: list[tuple[int, str, Form]] = []
    if cached and not not_standard:
        prompts.append((PROMPT, "prompts standard", standard))
    if bias is not None and not not_grouped:
        prompts.append(
            (
                GROUPED if not_standard else LONG,
                "long prompts grouped",
                partial(_prompt_grouped, block=block, bias=bias),
            )
        )
    form: Form = standard
    if cached or not_standard:
        folded = None if bias is None else _folded_bias(emit, block, bias, prompts[0][0] if prompts else 0, biases)
        form = partial(_plain, block=block, bias=bias, folded=folded)
    emit.replace(_by_length(emit, block, prompts, form))
    formulation = ", ".join(["standard" if form is standard else "plain", *(name for _, name, _ in prompts)])
    faster = (
        f"faster from {' and '.join(str(least) for least, _, _ in prompts)} new tokens on without a cache"
        if prompts
        else ""
    )
    why = "; ".join(
        filter(
            None,
            [faster, not_standard and f"not standard: {not_standard}", not_grouped and f"not grouped: {not_grouped}"],
        )
    )
    return {"node": emit.name, "op": OPERATOR, "formulation": formulation, "why": why}


def _by_length(emit: Emitter, block: Attention, prompts: Sequence[tuple[int, str, Form]], form: Form) -> ir.Value:
    """A form, or for as many new tokens without a cache as `prompts` say, another; longest last."""
    if not prompts:
        return form(emit)
    (least, _, other), *longer = prompts
    then, otherwise = emit.branch("prompt"), emit.branch("tokens")
    return emit.choose(
        _is_prompt(emit, block, least), (then, _by_length(then, block, longer, other)), (otherwise, form(otherwise))
    )


def _folded_bias(
    emit: Emitter, block: Attention, bias: ir.Value, least: int, biases: dict[object, ir.Value]
) -> ir.Value:
    """The bias for folded heads; a prompt of `least` tokens (0: none), for which nobody reads it, keeps the plain one
    instead of copies."""
    if block.heads == block.groups:
        return bias
    shared = (block.mask, block.heads // block.groups, least)
    if shared not in biases and least:
        then, otherwise = emit.branch("prompt"), emit.branch("tokens")
        branches = (then, then("Identity", bias)), (otherwise, fold_bias(otherwise, block, bias))
        biases[shared] = emit.choose(_is_prompt(emit, block, least), *branches)
    elif shared not in biases:
        biases[shared] = fold_bias(emit, block, bias)
    return biases[shared]


def _plain(emit: Emitter, block: Attention, bias: ir.Value | None, folded: ir.Value | None = None) -> ir.Value:
    """`[B, S, N, V]` by plain products."""
    return emit_plain(emit, block, bias, _fused_scores, folded)


def _fused_scores(emit: Emitter, query: ir.Value, key: ir.Value, scale: float, dtype: ir.DataType) -> ir.Value:
    return emit("FusedMatMul", query, key, domain=MICROSOFT, transB=1, alpha=scale)


def why_not_standard(block: Attention, provider: str) -> str:
    """Why the standard operator would be wrong or was not measured; empty when it is chosen."""
    if block.sinks is not None:
        return "sinks"
    if block.softcap:
        return "a cap on the scores comes after its mask"
    return "" if provider == "cpu" and block.dtype == FLOAT else "only measured in float32 on a CPU"


# ---------------------------------------------------------------------- prompts
def _is_prompt(emit: Emitter, block: Attention, least: int) -> ir.Value:
    """Whether there is no cache and so many new tokens."""
    new = emit("Shape", block.query, start=2, end=3)
    long = emit("GreaterOrEqual", new, emit.constant([least]))
    if _may_have_cache(block):
        long = emit("And", emit("Equal", new, emit("Shape", block.key, start=2, end=3)), long)
    return emit("Squeeze", long)


def _may_have_cache(block: Attention) -> bool:
    length = _length(block.query)
    return length is None or length != _length(block.key)


def _length(value: ir.Value) -> str | None:
    """The name or number of the dimension that counts tokens, where it has one."""
    name = None if value.shape is None else str(value.shape[2])
    return None if name == "None" else name


def _standard(emit: Emitter, block: Attention, bias: ir.Value | None) -> ir.Value:
    """`[B, S, N, V]` by the standard operator, which tells from the shapes how many query heads share a key-value
    head."""
    y = emit("Attention", block.query, block.key, block.value, bias, scale=block.scale)
    return emit("Transpose", y, perm=BY_HEAD)


def _prompt_grouped(emit: Emitter, block: Attention, bias: ir.Value) -> ir.Value:
    """`[B, S, N, V]` by GroupQueryAttention on a prompt without a cache."""
    tokens = [by_token(emit, v) for v in (block.query, block.key, block.value)]
    row_lengths = lengths(emit, emit("Shape", block.key, start=2, end=3), emit("Shape", block.query, start=0, end=1))
    y = emit_grouped_query(emit, block, tokens, (None, None), row_lengths, bias)[0]
    return emit("Reshape", y, emit.constant([0, 0, block.heads, -1]))
