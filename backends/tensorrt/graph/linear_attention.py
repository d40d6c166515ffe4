"""Opaque `moec::LinearAttention` nodes as the standard operator Scan: one loop for a prompt and for a token.

TensorRT has no operator for the recurrence, and its parser takes a Scan of any length. A prompt of n tokens is n turns
of the loop, each of a few small products: right at every length, and slow for long prompts (docs/lowering.md). A token
is one turn.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.attention import FLOAT, size_of
from moec.backends.onnx.emit import DOMAIN, Emitter

OPERATOR, FORMULATION = "LinearAttention", "Scan"


def lower_linear_attention(model: ir.Model) -> list[dict[str, str]]:
    """Replace every `moec::LinearAttention` node of the main graph, in place; computed in float32, as the dialect has
    it, whatever the tokens' dtype is.

    Returns:
        One record a node: `node`, `op`, `formulation` and `why`.
    """
    nodes = [node for node in list(model.graph) if node.domain == DOMAIN and node.op_type == OPERATOR]
    return [_lower(model.graph, node) for node in nodes]


def _lower(graph: ir.Graph, node: ir.Node) -> dict[str, str]:
    emit = Emitter(graph, node)
    query, key, value, state, decay, rate = [*node.inputs, None, None][:6]
    assert query is not None and key is not None and value is not None and state is not None
    scale, epsilon = (node.attributes[name].as_float() for name in ("scale", "epsilon"))
    each = size_of(value, 2) // size_of(key, 2)
    rows = [_row(emit, _every_head(emit, _unit(emit, emit.wide(x), epsilon), x, each)) for x in (query, key)]
    rows[0] = emit("Mul", rows[0], emit.number(scale, FLOAT))
    given = [*rows, _row(emit, emit.wide(value))]
    if decay is not None:
        kept, by_head = emit("Exp", emit.wide(decay)), _rank(decay) == 3
        given.append(emit("Unsqueeze", kept, emit.constant([3, 4] if by_head else [4])))
    if rate is not None:
        given.append(emit("Unsqueeze", emit.wide(rate), emit.constant([3, 4])))
    has = decay is not None, rate is not None
    after, read = emit.scan(lambda body, *values: _token(body, has, *values), [emit.wide(state)], given, axis=1)
    y = emit("Squeeze", read, emit.constant([3]))
    emit.replace_several([emit.cast(y, FLOAT, value.dtype or FLOAT), emit.cast(after, FLOAT, state.dtype or FLOAT)])
    why = "TensorRT has no operator for it: a token is one turn of a loop, a prompt one turn for each of its tokens"
    return {"node": emit.name, "op": OPERATOR, "formulation": FORMULATION, "why": why}


def _token(
    emit: Emitter, has: tuple[bool, bool], memory: ir.Value, query: ir.Value, key: ir.Value, value: ir.Value,
    *rules: ir.Value,
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """One token: memory `[B, H, D, V]`, query and key `[B, H, 1, D]`, value `[B, H, 1, V]`, then the part of the memory
    that is kept, `[B, H, 1 or D, 1]`, and the rate `[B, H, 1, 1]`, where the rule has them. Gives the new memory, and
    what the token reads of it, `[B, H, 1, V]`."""
    left = iter(rules)
    if has[0]:
        memory = emit("Mul", memory, next(left))
    if has[1]:  # only what the memory does not say of this key yet
        value = emit("Mul", emit("Sub", value, emit("MatMul", key, memory)), next(left))
    after = emit("Add", memory, emit("Mul", emit("Transpose", key, perm=[0, 1, 3, 2]), value))
    return after, emit("MatMul", query, after)


def _row(emit: Emitter, x: ir.Value) -> ir.Value:
    """`[B, S, H, D]` as rows, `[B, S, H, 1, D]`."""
    return emit("Unsqueeze", x, emit.constant([3]))


def _every_head(emit: Emitter, x: ir.Value, like: ir.Value, each: int) -> ir.Value:
    """`[B, S, G, D]` for the heads that share it, one after the other, `[B, S, G * each, D]`; `like` has x's shape."""
    if each == 1:
        return x
    groups, width = size_of(like, 2), size_of(like, 3)
    apart = emit("Unsqueeze", x, emit.constant([3]))
    spread = emit("Expand", apart, emit.constant([1, 1, 1, each, 1]))
    return emit("Reshape", spread, emit.constant([0, 0, groups * each, width]))


def _unit(emit: Emitter, x: ir.Value, epsilon: float) -> ir.Value:
    """Rows over the square root of their sum of squares and `epsilon`."""
    if not epsilon:
        return x
    sums = emit("ReduceSum", emit("Mul", x, x), emit.constant([-1]))
    return emit("Div", x, emit("Sqrt", emit("Add", sums, emit.number(epsilon, FLOAT))))


def _rank(value: ir.Value) -> int:
    assert value.shape is not None
    return len(value.shape)
