"""Which blocks ONNX Runtime's MoE operator computes by itself; needs no runtime, so that passes and planners can
ask."""

from __future__ import annotations

from typing import Any

from moec.dialect import Activation, Routing

# not "gelu": it is the tanh form on CPU and some GPUs, the erf form on others
PLAIN = ("relu", "silu", "identity")
NEGLIGIBLE = 1e-12  # what `renormalize` may add to a sum of scores, or have it be at least, and change nothing


def is_native(routing: Routing, selection_bias: bool, activation: Activation, score_before: bool) -> bool:
    """Whether router logits alone make the operator compute this block: the exporter keeps such a `moec::moe` whole.

    That is softmax over all experts, top-k, weights as they are or renormalised; also softmax over the chosen, which is
    the same number. A scale is multiplied onto the output.
    """
    plain = Routing(routing.top_k, routing.score, routing.combine, scale=routing.scale)
    if routing != plain or selection_bias or score_before or kernel_activation(activation) is None:
        return False
    return routing.combine == "softmax" or (routing.score == "softmax" and routing.combine in ("renormalize", "scores"))


def has_logits(routing: Routing, activation: Activation, score_before: bool) -> bool:
    """Whether there are logits that make the operator compute this block, whatever bias or groups decide the choice;
    see `chosen.emit_operator_logits`.

    The logarithm of a score must be one of few operators, so that a step does not consist of them.
    """
    if kernel_activation(activation) is None or (score_before and routing.top_k > 1):
        return False
    known = routing.score in ("softmax", "sigmoid") or (routing.score == "identity" and routing.combine == "ones")
    return known and max(routing.epsilon, routing.floor) <= NEGLIGIBLE


def kernel_activation(rule: Activation) -> dict[str, Any] | None:
    """The operator's attributes for an activation, or None when it has none that computes the same."""
    if not rule.gated:
        return (
            {"activation_type": rule.name}
            if rule.name in PLAIN and (rule.name != "silu" or rule.alpha == 1.0)
            else None
        )
    if rule.name != "silu" or (rule.clamp_after and rule.limit) or rule.cap or rule.up_cap:
        return None
    found = {
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": float(rule.alpha),
        "activation_beta": float(rule.beta),
    }
    return {**found, "swiglu_limit": float(rule.limit)} if rule.limit else found
