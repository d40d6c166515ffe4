"""From opaque `moec::Experts` and `moec::Moe` nodes to what ONNX Runtime runs, the form chosen from measurement.

CPU: the grouped form. It is even with the MoE operator at one token and 1.3 to 1.6 times faster from 16 on (benchmarks/moe_cpu.py),
because plain products get their weights packed and use all threads for one expert.
CUDA: the MoE operator wherever it is right; the grouped form would launch small kernels for every expert.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnxruntime.block import Block, read
from moec.backends.onnxruntime.emit import MICROSOFT, Emitter
from moec.backends.onnxruntime.grouped import branches, emit_grouped
from moec.backends.onnxruntime.kernel import emit_native, emit_portable, is_native, kernel_activation
from moec.backends.onnxruntime.routing import emit_choice, emit_logits
from moec.backends.onnxruntime.signs import distinct, nonnegative

DOMAIN = "moec"


def lower(model: ir.Model, optimize_for: str = "latency", provider: str = "cpu") -> list[dict[str, str]]:
    """Replace every `moec` node of the main graph, in place; weights stay lazy, those that nobody reads any more are dropped.

    Args:
        model: opset 20 or newer in the standard domain (`Gelu`).
        optimize_for: `latency` (few tokens a call) or `throughput`: see `emit_grouped`.
        provider: `cpu` or `cuda`.

    Returns:
        One record a node: `node`, `op`, `formulation` (`kernel`, `kernel, portable routing` or `grouped`) and `why`, with the arrangement of
        grouped experts.

    Raises:
        MoecError: M208 when a node's weights are not initializers.
    """
    facts = [_lower_node(model.graph, node, optimize_for, provider) for node in list(model.graph) if node.domain == DOMAIN]
    if facts:
        model.opset_imports[MICROSOFT] = 1
        model.opset_imports.pop(DOMAIN, None)
    return facts


def _lower_node(graph: ir.Graph, node: ir.Node, optimize_for: str, provider: str) -> dict[str, str]:
    block, emit, joined = read(node), Emitter(graph, node), optimize_for == "latency"
    refusal = why_not_kernel(block) if provider == "cuda" else "packed products beat the MoE operator on CPU"
    logits = emit_logits(emit, block) if block.routing else None
    if logits is not None and not refusal:
        formulation, y = "kernel", emit_native(emit, block, logits)
    else:
        ids, weights = emit_choice(emit, block, logits) if logits is not None else (block.ids, block.weights)
        assert ids is not None and weights is not None
        dtype = block.wide if logits is not None else weights.dtype or block.dtype
        if refusal:
            formulation, y = "grouped", emit_grouped(emit, block, ids, weights, dtype, joined)
        else:
            formulation, y = "kernel, portable routing", emit_portable(emit, block, ids, weights, dtype)
    emit.replace(y)
    why = f"{refusal}; {arrangement(block.experts, joined)}" if refusal else "one operator computes all experts"
    return {"node": emit.name, "op": node.op_type, "formulation": formulation, "why": why}


def arrangement(experts: int, joined: bool) -> str:
    """How grouped experts stand in the graph, in a few words."""
    count = branches(experts, joined)
    where = f"{count} branch{'es' if count > 1 else ''}" if count else "no branch"
    return f"{'one activation for all (few tokens)' if joined else 'one activation for each (many tokens)'}, {where}"


def why_not_kernel(block: Block) -> str:
    """Why the MoE operator would be wrong for a block, in a few words; empty when it is right."""
    rule = block.activation
    if kernel_activation(rule) is None:
        return f"the MoE operator has no {'gated ' if rule.gated else ''}{rule.name}{' with this clamp' if rule.limit else ''}"
    if block.dtype == ir.DataType.DOUBLE:
        return "the MoE operator has no float64"
    sizes = (block.hidden, block.w_out.shape[2])
    if any(size < 16 or size % 8 for size in sizes):
        return f"the CUDA kernel needs sizes of 16 or more, multiples of 8, not {sizes}"
    if block.routing is not None:
        return "" if is_native(block.routing, False, rule, block.score_before) else "the MoE operator's routing is another"
    if block.top_k == 1:
        return ""
    if block.score_before:
        return "weights come before the experts, and there is more than one a token"
    if not nonnegative(block.weights):
        return "the routing weights are not known to be non-negative"
    return "" if distinct(block.ids, block.top_k) else "a token's experts are not known to be distinct"
