"""From opaque `moec::Experts` and `moec::Moe` nodes to what ONNX Runtime runs, the form chosen from measurement.

CPU: the grouped form. It is even with the MoE operator at one token and 1.3 to 1.6 times faster from 16 on
(benchmarks/moe_cpu.py), because plain products get their weights packed and use all threads for one expert. CUDA: the
MoE operator wherever it is right; the grouped form would launch small kernels for every expert. Packed weights: the
QMoE operator wherever it is right and exact, else the grouped form with packed products (benchmarks/quantized_cpu.py);
for throughput the grouped form also with 4 bits and few experts (128 tokens, 8 experts: 0.87 of the operator's time; 64
experts: 1.02). Experts of several widths: one operator in the widest where nothing may be rounded, else an operator for
each width, see `each_width`.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from moec.backends.onnx.emit import DOMAIN, MICROSOFT, Emitter
from moec.backends.onnx.moe_node import INPUTS, MoeNode, read
from moec.backends.onnx.packed import remove_unread
from moec.backends.onnx.routing_proofs import distinct, nonnegative
from moec.backends.onnxruntime.experts.each_width import emit_each_width
from moec.backends.onnxruntime.experts.gathered import emit_on_gathered, emit_renormalized
from moec.backends.onnxruntime.experts.grouped import FLAT, branches, emit_grouped
from moec.backends.onnxruntime.experts.kernel import emit_native, emit_portable, emit_told
from moec.backends.onnxruntime.experts.native_rule import has_logits, is_native, kernel_activation
from moec.backends.onnxruntime.experts.operands import WIDE
from moec.backends.onnxruntime.experts.own_kernel import (
    FORMULATION,
    OWN,
    emit_own,
    emit_routed,
    why_not_own,
    why_not_routed,
)
from moec.backends.onnxruntime.experts.qmoe import each_width, emit_weighted, kernel_bits, why_not_qmoe
from moec.backends.onnxruntime.experts.routing import emit_choice, emit_logits
from moec.weights.weight import PackedWeight

READERS = {"grouped": "MatMulNBits", "gathered": "GatherBlockQuantized"}  # of packed weights, by the form
PORTABLE, TOLD = "kernel, portable routing", "kernel, routing before it"


def lower_experts(
    model: ir.Model, optimize_for: str = "latency", provider: str = "cpu", rounded: bool = False, own: bool = False
) -> list[dict[str, Any]]:
    """Replace every `moec::Moe` and `moec::Experts` node of the main graph, in place; weights stay lazy, those that
    nobody reads any more are dropped.

    Args:
        model: opset 20 or newer in the standard domain (`Gelu`).
        optimize_for: `latency` (few tokens a call) or `throughput`: see `emit_grouped`.
        provider: `cpu` or `cuda`.
        rounded: whether kernels with packed weights may round activations to 8 bits.
        own: whether blocks may become operators of moec's own library, those that it takes.

    Returns:
        One record a node: `node`, `op`, `formulation` (`kernel`, `kernel, weights given`, `kernel, portable routing`,
            `kernel, routing before it`, `kernel for each width`, `own kernel` or `grouped`) and `why`, with the
            arrangement of grouped experts; for packed weights `bits`, `block` and `bytes` of each matrix too, and for
            several widths how many `experts` have which.

    Raises:
        MoecError: M208 when a node's weights are not initializers.
    """
    nodes = [node for node in model.graph if node.domain == DOMAIN and node.op_type in INPUTS]
    facts = [_lower_node(model.graph, node, optimize_for, provider, rounded, own) for node in nodes]
    if facts:
        model.opset_imports[MICROSOFT] = 1
    if any(fact["formulation"] == FORMULATION for fact in facts):
        model.opset_imports[OWN] = 1
    if not any(node.domain == DOMAIN for node in model.graph):
        model.opset_imports.pop(DOMAIN, None)
    return facts


def _lower_node(
    graph: ir.Graph, node: ir.Node, optimize_for: str, provider: str, rounded: bool, own: bool
) -> dict[str, Any]:
    block, emit, joined = read(node), Emitter(graph, node), optimize_for == "latency"
    other = why_not_own(block) if own else ""
    if own and not other:
        return _lower_own(emit, node, block)
    refusal, inputs = _why_grouped(block, provider, rounded, joined), list(node.inputs)
    bits = kernel_bits(block, provider, rounded) if is_packed(block) and not refusal else 0
    apart = not refusal and each_width(block, provider, rounded)
    native = block.routing is not None and not refusal and not apart and _logits_tell_all(block)
    told = provider == "cuda" and block.routing is not None and not refusal and not apart
    logits = emit_logits(emit, block) if block.routing and not told else None
    if told:
        formulation, y = "kernel" if native else TOLD, emit_told(emit, block, native, bits)
    elif logits is not None and native:
        formulation, y = "kernel", emit_native(emit, block, logits, bits)
    else:
        ids, weights = emit_choice(emit, block, logits) if logits is not None else (block.ids, block.weights)
        assert ids is not None and weights is not None
        dtype = block.wide if logits is not None else weights.dtype or block.dtype
        if refusal and provider == "cuda" and joined:
            operator = not (_why_not_unpacked(block) or _why_not_mixed(block, ids, weights))
            formulation = f"gathered, {'kernel' if operator else 'plain products'}"
            if operator and logits is not None and _is_native(block) and block.routing.combine != "scores":
                y = emit_renormalized(emit, block, logits)
            else:
                y = emit_on_gathered(emit, block, ids, weights, dtype, operator)
        elif refusal:
            formulation, y = "grouped", emit_grouped(emit, block, ids, weights, dtype, joined)
        elif apart:
            formulation, y = "kernel for each width", emit_each_width(emit, block, ids, weights, dtype, provider)
        elif provider == "cpu" and not block.score_before:
            formulation, y = "kernel, weights given", emit_weighted(emit, block, ids, weights, dtype, bits)
        else:
            formulation, y = PORTABLE, emit_portable(emit, block, ids, weights, dtype, bits)
    emit.replace(y)
    remove_unread(graph, inputs)
    why = f"{refusal}; {_how(block, formulation, joined)}" if refusal else _why_kernel(block, apart, bits)
    why = f"{other}; {why}" if other else why
    return {
        "node": emit.name,
        "op": node.op_type,
        "formulation": formulation,
        "why": why,
        **_packed_facts(block, formulation),
    }


def _lower_own(emit: Emitter, node: ir.Node, block: MoeNode) -> dict[str, Any]:
    """The block as an operator of moec's own library."""
    inputs, why = list(node.inputs), "one operator of moec's own computes all experts"
    if block.routing is not None and not (apart := why_not_routed(block)):
        y, why = emit_routed(emit, block), f"{why}, and routes"
    elif block.routing is not None:
        ids, weights = emit_choice(emit, block, emit_logits(emit, block))
        y, why = emit_own(emit, block, ids, weights, block.wide), f"{why}; {apart}"
    else:
        assert block.ids is not None and block.weights is not None
        y = emit_own(emit, block, block.ids, block.weights, block.weights.dtype or block.dtype)
    operator = y.producer()
    emit.replace(y)
    remove_unread(emit.graph, inputs)
    fact = {"node": emit.name, "op": node.op_type, "formulation": FORMULATION, "why": why}
    packed = _packed_facts(block, FORMULATION)
    assert operator is not None
    return {**fact, **packed, **({"kernel": operator.op_type} if packed else {})}


def _how(block: MoeNode, formulation: str, joined: bool) -> str:
    gathered = "the chosen experts are gathered on the device, all of them for many tokens"
    return gathered if formulation.startswith("gathered") else arrangement(block.experts, joined)


def _why_kernel(block: MoeNode, apart: bool, bits: int) -> str:
    if apart:
        return "one operator computes all experts of a width"
    own = block.w_in.bits if isinstance(block.w_in, PackedWeight) else bits
    stored = sorted({part.w_in.bits for part in block.parts} or {own})
    wider = f"; {stored[0]} bits become {bits} when loaded" if stored[0] < bits else ""
    return f"one operator computes all experts{wider}"


def _why_grouped(block: MoeNode, provider: str, rounded: bool, few_tokens: bool) -> str:
    """Why a block's experts become plain products, in a few words; empty for one operator."""
    if is_packed(block):
        wrong = (
            _why_not_activation(block) or why_not_qmoe(block, provider, rounded) or _why_not_routing(block, provider)
        )
        faster = (
            provider == "cpu" and not (rounded or few_tokens) and block.experts <= FLAT and _is_uniform(block, WIDE)
        )
        return wrong or ("packed products of few experts beat the QMoE operator with many tokens" if faster else "")
    return why_not_kernel(block, provider) if provider == "cuda" else "packed products beat the MoE operator on CPU"


def is_packed(block: MoeNode) -> bool:
    """Whether one of the experts' matrices is quantized."""
    return isinstance(block.w_in, PackedWeight) or isinstance(block.w_out, PackedWeight)


def _is_uniform(block: MoeNode, bits: int) -> bool:
    """Whether all experts are stored in so many bits."""
    return not block.parts and isinstance(block.w_in, PackedWeight) and block.w_in.bits == bits


def _logits_tell_all(block: MoeNode) -> bool:
    """Whether router logits alone tell the operator all; QMoE on the CPU renormalises whatever its attribute says."""
    return _is_native(block) and not (is_packed(block) and block.routing and block.routing.combine == "scores")


def _is_native(block: MoeNode) -> bool:
    rule, bias = block.routing, block.selection_bias is not None
    return rule is not None and is_native(rule, bias, block.activation, block.score_before)


def _packed_facts(block: MoeNode, formulation: str) -> dict[str, Any]:
    packed = [w for p in block.parts or (block,) for w in (p.w_in, p.w_out) if isinstance(w, PackedWeight)]
    if not packed:
        return {}
    widths, sizes = (", ".join(dict.fromkeys(str(getattr(w, name)) for w in packed)) for name in ("bits", "group"))
    found = {
        "kernel": READERS.get(formulation.partition(",")[0], "QMoE"),
        "bits": widths,
        "block": sizes,
        "bytes": sum(w.size_bytes for w in packed),
    }
    return {**found, "experts": {str(p.w_in.bits): len(p.experts) for p in block.parts}} if block.parts else found


def arrangement(experts: int, joined: bool) -> str:
    """How grouped experts stand in the graph, in a few words."""
    count = branches(experts, joined)
    where = f"{count} branch{'es' if count > 1 else ''}" if count else "no branch"
    return f"{'one activation for all (few tokens)' if joined else 'one activation for each (many tokens)'}, {where}"


def why_not_kernel(block: MoeNode, provider: str = "cuda") -> str:
    """Why the MoE operator would be wrong for a block, in a few words; empty when it is right."""
    return _why_not_activation(block) or _why_not_sizes(block) or _why_not_routing(block, provider)


def _why_not_activation(block: MoeNode) -> str:
    rule = block.activation
    if kernel_activation(rule) is None:
        return (
            "the MoE operator has no "
            f"{'gated ' if rule.gated else ''}{rule.name}{' with this clamp' if rule.limit else ''}"
        )
    return "the MoE operator has no float64" if block.dtype == ir.DataType.DOUBLE else ""


def _why_not_sizes(block: MoeNode) -> str:
    sizes = (block.hidden, block.w_out.shape[2])
    wrong = any(size < 16 or size % 8 for size in sizes)
    return f"the CUDA kernel needs sizes of 16 or more, multiples of 8, not {sizes}" if wrong else ""


def _why_not_routing(block: MoeNode, provider: str) -> str:
    if block.routing is not None:
        told = provider == "cuda" and has_logits(block.routing, block.activation, block.score_before)
        return "" if told or _is_native(block) else "the MoE operator's routing is another"
    return _why_not_mixed(block, block.ids, block.weights)


def _why_not_unpacked(block: MoeNode) -> str:
    """Why the MoE operator would be wrong for the experts once they are unpacked."""
    return _why_not_activation(block) or _why_not_sizes(block)


def _why_not_mixed(block: MoeNode, ids: ir.Value | None, weights: ir.Value | None) -> str:
    """Why the operators cannot mix a token's experts by these weights."""
    if block.top_k == 1:
        return ""
    if block.score_before:
        return "weights come before the experts, and there is more than one a token"
    if not nonnegative(weights):
        return "the routing weights are not known to be non-negative"
    return "" if distinct(ids, block.top_k) else "a token's experts are not known to be distinct"
