"""Sizes that were asked for before are not asked for again: layers of a model put the same questions to tensors of the
same shape."""

from __future__ import annotations

import onnx_ir as ir

_QUESTIONS = ("Shape", "Size")


def share_sizes(model: ir.Model) -> int:
    """Let `Shape` and `Size` of values whose dimensions have the same names and numbers be one node each, in place.

    What is computed from them becomes equal thereby, which removal of common subexpressions then finds. Returns how
    many went.
    """
    graph, first = model.graph, dict[object, ir.Node]()
    gone = 0
    for node in list(graph):
        key = _key(node)
        if key is None:
            continue
        if key not in first:
            first[key] = node
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], first[key].outputs[0])
        graph.remove(node, safe=True)
        gone += 1
    return gone


def _key(node: ir.Node) -> object:
    """Equal for questions with the same answer; None for anything else, or where a dimension has neither name nor
    number."""
    if node.op_type not in _QUESTIONS or node.domain != "" or node.outputs[0].is_graph_output():
        return None
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or any(isinstance(d, ir.SymbolicDim) and d.value is None for d in shape):
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    asked = tuple(str(d) for d in shape)
    return node.op_type, asked[start:end] if node.op_type == "Shape" else tuple(sorted(asked))
