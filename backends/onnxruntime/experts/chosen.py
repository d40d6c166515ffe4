"""Logits with which ONNX Runtime's MoE and QMoE operators choose and mix by a rule other than their own, in few
kernels.

The operators take the K largest of what they are given and mix by the softmax over these. Given the logarithm of each
expert's score they mix by the scores' shares; where a correction bias or groups decide the choice, all but the chosen
are closed, which a comparison with the K-th largest tells without ids: scattering K logarithms into a row takes three
kernels and a copy more. Nothing here takes cuDNN.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import MoeNode
from moec.backends.onnxruntime.experts.mixing import CLOSED
from moec.backends.onnxruntime.experts.routing import emit_last, emit_logits, emit_open


def keeps_dtype(block: MoeNode) -> bool:
    """Whether the operator's logits and the sum of its weights may be computed in the block's own dtype: router logits
    are rounded to that for the operator anyway, and a sum of a softmax as any factor of the output is. Logarithms and
    comparisons of scores may not."""
    rule = block.routing
    assert rule is not None
    return rule.score == "softmax" and block.selection_bias is None and rule.groups == 1 and rule.combine == "scores"


def emit_operator_logits(
    emit: Emitter, block: MoeNode, dtype: ir.DataType | None = None
) -> tuple[ir.Value, ir.Value | None]:
    """Logits `[T, E]` for the operator, and the sum of a token's weights `[T, 1]`, both in `dtype`, the wide one when
    None: see `keeps_dtype`.

    The operator's weights have the sum 1. The sum is None where it is the rule's scale, or K times that for `ones`.
    A rule for which `native_rule.has_logits`; experts that are chosen together by equal scores at the border are
    more than K, and the operator takes K of them.
    """
    rule, dtype = block.routing, dtype or block.wide
    assert rule is not None
    apart = block.selection_bias is not None or rule.groups > 1
    counts = rule.combine == "scores"
    logs, scores = _scores(emit, block, apart or counts, dtype)
    top: ir.Value | None = None
    if apart or rule.combine == "ones":
        choice = emit_open(emit, block, scores) if apart else logs
        top, ids = emit.several(2, "TopK", choice, emit.constant([rule.top_k]))
        chosen = emit("GreaterOrEqual", choice, emit_last(emit, top, rule.top_k))
        value = emit.number(0.0, block.wide) if rule.combine == "ones" else logs
        logs = emit("Where", chosen, value, emit.number(CLOSED, block.wide))
        top = emit("GatherElements", scores, ids, axis=1) if counts else None
    elif counts:
        top, _ = emit.several(2, "TopK", scores, emit.constant([rule.top_k]))
    if top is None:
        return logs, None
    total = top if rule.top_k == 1 else emit("ReduceSum", top, emit.constant([1]))
    return logs, total if rule.scale == 1.0 else emit("Mul", total, emit.number(rule.scale, dtype))


def _scores(emit: Emitter, block: MoeNode, wanted: bool, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
    """Logarithms of the scores up to a number a row, and the scores (the logarithms again where not wanted)."""
    rule = block.routing
    assert rule is not None
    if rule.score != "sigmoid":
        logits = emit_logits(emit, block, dtype, apart=True)
        return logits, emit("Softmax", logits, axis=-1) if wanted and rule.score == "softmax" else logits
    # log sigmoid(x) = -softplus(-x): exact where a sigmoid is 0 or 1
    turned = emit_logits(emit, block, factor=-1.0, apart=True)
    logs = emit("Neg", emit("Softplus", turned))
    scores = emit("Exp", logs) if wanted else logs
    return emit("Neg", turned) if rule.combine == "softmax" else logs, scores
