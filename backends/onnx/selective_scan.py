"""Opaque `moec::SelectiveScan` nodes as the standard operator Scan: one loop for a prompt and for a token.

For a token it takes as long as the bare products do, a prompt grows by that much a token (docs/lowering.md). A sum over
the whole prompt at once would have to undo decays, which leaves the range of float32.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from moec.backends.onnx.emit import DOMAIN, Emitter

FLOAT = ir.DataType.FLOAT
OPERATOR = "Scan"


def lower_selective_scans(model: ir.Model) -> list[dict[str, Any]]:
    """Replace every `moec::SelectiveScan` node of the main graph, in place.

    Returns:
        One record a node: `node`, `op`, `formulation` and `why`.
    """
    nodes = [node for node in model.graph if node.domain == DOMAIN and node.op_type == "SelectiveScan"]
    return [_lower(model.graph, node) for node in nodes]


def _lower(graph: ir.Graph, node: ir.Node) -> dict[str, Any]:
    emit = Emitter(graph, node)
    x, delta, rates, keys, queries, state = (emit.wide(value) for value in node.inputs if value is not None)
    last, second = emit.constant([-1]), emit.constant([2])
    given = [emit("Unsqueeze", value, last) for value in (delta, emit("Mul", x, delta), queries)]
    given.insert(2, emit("Unsqueeze", keys, second))
    after, read = emit.scan(lambda body, *values: _token(body, rates, *values), [state], given, axis=1)
    emit.replace_several(
        [
            _narrow(emit, found, old)
            for found, old in zip((emit("Squeeze", read, last), after), node.outputs, strict=True)
        ]
    )
    why = "a token takes as long as the bare products, and a prompt as long as its tokens"
    return {"node": emit.name, "op": "SelectiveScan", "formulation": OPERATOR, "why": why}


def _token(
    emit: Emitter, rates: ir.Value, state: ir.Value, delta: ir.Value, x: ir.Value, key: ir.Value, query: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """One token: state `[B, D, N]`, delta and x `[B, D, 1]`, key `[B, 1, N]`, query `[B, N, 1]`. Gives the new
    state and what the token reads of it, `[B, D, 1]`."""
    kept = emit("Mul", emit("Exp", emit("Mul", delta, rates)), state)
    after = emit("Add", kept, emit("Mul", x, key))
    return after, emit("MatMul", after, query)


def _narrow(emit: Emitter, value: ir.Value, like: ir.Value) -> ir.Value:
    return emit.cast(value, FLOAT, like.dtype or FLOAT)
