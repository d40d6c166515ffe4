"""From opaque `moec::LinearAttention` nodes to ONNX Runtime's operator of that name, which was right in every form and
at every length that was tried, and faster than PyTorch from one token to 2048 (docs/lowering.md)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.backends.onnx.attention import FLOAT, size_of
from moec.backends.onnx.emit import DOMAIN, MICROSOFT, Emitter

OPERATOR = "LinearAttention"


def lower_linear_attention(model: ir.Model) -> list[dict[str, str]]:
    """Replace every `moec::LinearAttention` node of the main graph by the operator of `com.microsoft`, in place.

    Everything is computed in float32, as the dialect has it, whatever the tokens' dtype is. Without a cache the state
    is zeros and a state that nobody reads costs nothing.

    Returns:
        One record a node: `node`, `op`, `formulation` (its update rule) and `why`.
    """
    nodes = [node for node in list(model.graph) if node.domain == DOMAIN and node.op_type == OPERATOR]
    facts = [_lower_node(model.graph, node) for node in nodes]
    if facts:
        model.opset_imports[MICROSOFT] = 1
    return facts


def _lower_node(graph: ir.Graph, node: ir.Node) -> dict[str, str]:
    emit = Emitter(graph, node)
    query, key, value, state, decay, rate = [*node.inputs, None, None][:6]
    assert query is not None and key is not None and value is not None and state is not None
    scale, epsilon = (node.attributes[name].as_float() for name in ("scale", "epsilon"))
    rule = update_rule(decay, rate)
    pair = [_unit(emit, emit.wide(x), size_of(x, 3), epsilon) for x in (query, key)]
    rows = [_packed(emit, x, like) for x, like in zip((*pair, emit.wide(value)), (query, key, value), strict=True)]
    if decay is not None:
        decay = emit.wide(decay) if _rank(decay) == 3 else _packed(emit, emit.wide(decay), decay)
    y, present = emit.several(
        2, OPERATOR, *rows, emit.wide(state), decay, None if rate is None else emit.wide(rate), domain=MICROSOFT,
        q_num_heads=size_of(query, 2), kv_num_heads=size_of(value, 2), update_rule=rule, scale=scale,
    )  # fmt: skip
    y = emit("Reshape", y, emit.constant([0, 0, size_of(value, 2), size_of(value, 3)]))
    emit.replace_several([emit.cast(y, FLOAT, value.dtype or FLOAT), emit.cast(present, FLOAT, state.dtype or FLOAT)])
    why = "one operator, right at every length; it goes on from a state"
    return {"node": emit.name, "op": OPERATOR, "formulation": rule, "why": why}


def update_rule(decay: ir.Value | None, rate: ir.Value | None) -> str:
    """The operator's name for the recurrence that these inputs make."""
    if rate is None:
        return "linear" if decay is None else "gated"
    return "delta" if decay is None else "gated_delta"


def _rank(value: ir.Value) -> int:
    assert value.shape is not None
    return len(value.shape)


def _packed(emit: Emitter, x: ir.Value, like: ir.Value) -> ir.Value:
    """`[B, S, H, D]` with its heads side by side, `[B, S, H * D]`; `like` has its shape."""
    return emit("Reshape", x, emit.constant([0, 0, size_of(like, 2) * size_of(like, 3)]))


def _unit(emit: Emitter, x: ir.Value, width: int, epsilon: float) -> ir.Value:
    """Rows over the square root of their sum of squares: a norm by the mean of squares, whose scale makes a sum of
    it."""
    if not epsilon:
        return x
    scale = emit.constant(np.full(width, width**-0.5, np.float32))
    return emit("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=epsilon / width)
