"""From opaque `moec::Experts` and `moec::Moe` nodes to what ONNX Runtime runs, the form chosen from measurement.

CPU (benchmarks/moe_cpu.py): the grouped form beats the MoE operator, whose weights are not packed, from a few tokens on. With one
token both read the active weights once; the operator has fewer nodes.
CUDA: the operator wherever it is right; the grouped form would launch two small kernels an expert.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnxruntime.block import Block, read
from moec.backends.onnxruntime.emit import MICROSOFT, Emitter
from moec.backends.onnxruntime.grouped import emit_grouped
from moec.backends.onnxruntime.kernel import emit_native, emit_portable, is_native, kernel_activation
from moec.backends.onnxruntime.routing import emit_choice, emit_logits
from moec.backends.onnxruntime.signs import distinct, nonnegative

DOMAIN = "moec"


def lower(model: ir.Model, optimize_for: str = "latency", provider: str = "cpu") -> list[dict[str, str]]:
    """Replace every `moec` node of the main graph, in place; weights stay lazy, those that nobody reads any more are dropped.

    Args:
        model: opset 20 or newer in the standard domain (`Gelu`).
        optimize_for: `latency` (few tokens a call) or `throughput`.
        provider: `cpu` or `cuda`.

    Returns:
        One record a node: `node`, `op`, `formulation` (`kernel`, `kernel, portable routing` or `grouped`) and `why`.

    Raises:
        MoecError: M208 when a node's weights are not initializers.
    """
    facts = [_lower_node(model.graph, node, optimize_for, provider) for node in list(model.graph) if node.domain == DOMAIN]
    if facts:
        model.opset_imports[MICROSOFT] = 1
        model.opset_imports.pop(DOMAIN, None)
    return facts


def _lower_node(graph: ir.Graph, node: ir.Node, optimize_for: str, provider: str) -> dict[str, str]:
    block, emit = read(node), Emitter(graph, node)
    refusal = why_not_kernel(block, provider)
    kernel = not refusal and (provider == "cuda" or optimize_for == "latency")
    logits = emit_logits(emit, block) if block.routing else None
    if kernel and logits is not None:
        formulation, y = "kernel", emit_native(emit, block, logits)
    else:
        ids, weights = emit_choice(emit, block, logits) if logits is not None else (block.ids, block.weights)
        assert ids is not None and weights is not None
        dtype = block.wide if logits is not None else weights.dtype or block.dtype
        emit_experts, formulation = (emit_portable, "kernel, portable routing") if kernel else (emit_grouped, "grouped")
        y = emit_experts(emit, block, ids, weights, dtype)
    emit.replace(y)
    why = refusal or ("the MoE operator computes this rule" if kernel else "packed weights: faster from a few tokens on")
    return {"node": emit.name, "op": node.op_type, "formulation": formulation, "why": why}


def why_not_kernel(block: Block, provider: str) -> str:
    """Why the MoE operator would be wrong for a block, in a few words; empty when it is right."""
    rule = block.activation
    if kernel_activation(rule) is None:
        return f"the MoE operator has no {'gated ' if rule.gated else ''}{rule.name}{' with this clamp' if rule.limit else ''}"
    if block.dtype == ir.DataType.DOUBLE:
        return "the MoE operator has no float64"
    if provider == "cuda" and (reason := _cuda_limits(block)):
        return reason
    if block.routing is not None:
        return "" if is_native(block.routing, False, rule, block.score_before) else "the MoE operator's routing is another"
    if block.top_k == 1:
        return ""
    if block.score_before:
        return "weights come before the experts, and there is more than one a token"
    if not nonnegative(block.weights):
        return "the routing weights are not known to be non-negative"
    return "" if distinct(block.ids, block.top_k) else "a token's experts are not known to be distinct"


def _cuda_limits(block: Block) -> str:
    if block.activation.name == "gelu_tanh":
        return "the CUDA kernel's GELU is the tanh form on some architectures and the erf form on others"
    sizes = (block.hidden, block.w_out.shape[2])
    return "" if all(s >= 16 and s % 8 == 0 for s in sizes) else f"the CUDA kernel needs sizes of 16 or more, multiples of 8, not {sizes}"
