"""The experts as one operator of moec's own library (`moec.kernels.cpu`), which reads each chosen expert's weights
once, as they are stored.

It mixes by any ids and weights, repeated ids and negative weights too, and has every activation of the dialect. What it
gives for a token hangs neither on the other tokens of a call nor on the number of threads.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import MoeNode
from moec.dialect import Activation, Routing
from moec.dialect.routing import COMBINES, SCORES
from moec.kernels.cpu.structures import FUNCTIONS
from moec.weights.lazy import Weight
from moec.weights.weight import PackedWeight

OWN = "moec.cpu"  # the domain of the library's operators
FORMULATION = "own kernel"
BITS = (2, 4, 8)


def why_not_routed(block: MoeNode) -> str:
    """Why the router of a block stays in front of the operator, in a few words; empty where the operator routes."""
    values = (block.router_weight, block.router_bias, block.selection_bias)
    other = [v.dtype for v in values if v is not None and v.dtype != ir.DataType.FLOAT]
    return "the router is not in float32" if other or block.router_weight is None else ""


def why_not_own(block: MoeNode) -> str:
    """Why the library does not take a block, in a few words; empty when it does."""
    if block.dtype != ir.DataType.FLOAT:
        return f"moec's own kernel has float32 only, not {block.dtype.name.lower()}"
    if block.parts:
        return "moec's own kernel has one width for all experts of a matrix"
    if block.activation.name not in FUNCTIONS:
        return f"moec's own kernel has no {block.activation.name}"
    return next(filter(None, map(_why_not_matrix, (block.w_in, block.w_out))), "")


def _why_not_matrix(weight: Weight | PackedWeight) -> str:
    if not isinstance(weight, PackedWeight):
        return ""
    step = 16 * 8 // weight.bits  # numbers in 16 bytes of codes, which have one scale
    if weight.bits not in BITS or weight.group % step:
        return f"moec's own kernel reads {weight.bits} bits in blocks of multiples of {step}, not of {weight.group}"
    return ""


def emit_own(emit: Emitter, block: MoeNode, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType) -> ir.Value:
    """Emit the operator for `ids` and `weights`, both `[..., K]`; returns `[..., H]`."""
    rule = attributes(block, block.leaves_out(weights))
    weights = emit.cast(weights, weights_dtype, ir.DataType.FLOAT)
    return emit("Experts", block.x, ids, weights, *_experts(emit, block), domain=OWN, **rule)


def emit_routed(emit: Emitter, block: MoeNode) -> ir.Value:
    """Emit the operator that routes by itself, for a block with a router; returns `[..., H]`."""
    rule = block.routing
    assert rule is not None
    router = (block.router_weight, block.router_bias, block.selection_bias)
    return emit("Moe", block.x, *router, *_experts(emit, block), domain=OWN, **attributes(block), **_rule(rule))


def _rule(rule: Routing) -> dict[str, Any]:
    flags = {"by_two": rule.group_score == "top2", "closed_as_zero": rule.closed_as_zero}
    return {
        "score": SCORES.index(rule.score),
        "combine": COMBINES.index(rule.combine),
        **{name: getattr(rule, name) for name in ("top_k", "groups", "top_groups")},
        **{name: float(getattr(rule, name)) for name in ("scale", "epsilon", "floor")},
        **{name: int(flag) for name, flag in flags.items()},
    }


def attributes(block: MoeNode, left_out: bool = False) -> dict[str, Any]:
    """What both operators say of the experts. left_out: a weight of zero says that the choice is none."""
    rule: Activation = block.activation
    numbers = {name: float(getattr(rule, name)) for name in ("alpha", "beta", "limit", "cap", "up_cap")}
    flags = {
        "gated": rule.gated,
        "clamp_after": rule.clamp_after,
        "score_before": block.score_before,
        "left_out": left_out,
    }
    return {"function": FUNCTIONS.index(rule.name), **numbers, **{name: int(flag) for name, flag in flags.items()}}


def _experts(emit: Emitter, block: MoeNode) -> list[ir.Value | None]:
    """Matrix, scales, zero points and biases of the first stack, then of the second."""
    first = _stack(emit, block.w_in, block.b_in, "in")
    second = _stack(emit, block.w_out, block.b_out, "out")
    while second[-1] is None:
        second.pop()
    return [*first, *second]


def _stack(emit: Emitter, weight: Weight | PackedWeight, bias: Weight | None, role: str) -> list[ir.Value | None]:
    own = None if bias is None else emit.weight(bias, f"b_{role}")
    if not isinstance(weight, PackedWeight):
        return [emit.weight(weight, f"w_{role}"), None, None, own]
    zero = None if weight.zero is None else emit.weight(weight.zero, f"w_{role}.zeros")
    return [emit.weight(weight.packed, f"w_{role}.packed"), emit.weight(weight.scale, f"w_{role}.scales"), zero, own]
