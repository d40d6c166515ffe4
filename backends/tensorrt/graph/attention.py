"""From opaque `moec::Attention` nodes to standard operators: TensorRT fuses the chain of two products and a softmax by
itself.

The ONNX operator `Attention` would be one node, but a build fails wherever TensorRT has no fused kernel for its sizes
and dtype (measured with TensorRT-RTX 1.7.1 in float32), and the parser reads neither soft caps nor sinks.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.attention import OPERATOR, attention_nodes, emit_bias, emit_plain, read_attention
from moec.backends.onnx.emit import Emitter


def lower_attention(model: ir.Model) -> list[dict[str, str]]:
    """Replace every `moec::Attention` node of the main graph, in place.

    Returns:
        One record a node: `node`, `op`, `formulation` and `why`.
    """
    biases: dict[ir.Value, ir.Value] = {}  # layers share their masks
    facts = []
    for node in attention_nodes(model.graph):
        block, emit = read_attention(node), Emitter(model.graph, node)
        if block.mask is not None and block.mask not in biases:
            biases[block.mask] = emit_bias(emit, block.mask, block.dtype)
        emit.replace(emit_plain(emit, block, None if block.mask is None else biases[block.mask]))
        facts.append(
            {
                "node": emit.name,
                "op": OPERATOR,
                "formulation": "plain",
                "why": "products and a softmax, which TensorRT fuses",
            }
        )
    return facts
