"""A bias that is added before a residual sum and the norm of that sum, as gpt-oss has it after its attention, goes into
the norm's kernel: on a GPU every sum of its own costs a step as much as a small product."""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.tensors import is_constant

OPERATOR, BIAS = "SkipSimplifiedLayerNormalization", 3  # of its inputs, the bias is the fourth


def take_biases(model: ir.Model) -> int:
    """Let norms of a sum add the bias of one of its terms, in place; returns how many do.

    The term must be read by the norm alone, and the bias a constant `[H]` of the norm's dtype.
    """
    return sum(_take(model.graph, node) for node in list(model.graph) if node.op_type == OPERATOR)


def _take(graph: ir.Graph, norm: ir.Node) -> bool:
    if len(norm.inputs) > BIAS and norm.inputs[BIAS] is not None:
        return False
    gamma = norm.inputs[2]
    for at in (0, 1):
        add = _own_add(graph, norm.inputs[at])
        for bias, term in ((add.inputs[k], add.inputs[1 - k]) for k in (0, 1)) if add is not None else ():
            if gamma is None or bias is None or term is None or not is_constant(bias) or is_constant(term):
                continue
            if bias.dtype == gamma.dtype and bias.shape is not None and bias.shape == gamma.shape:
                norm.replace_input_with(at, term)
                norm.resize_inputs(BIAS + 1)
                norm.replace_input_with(BIAS, bias)
                assert add is not None
                graph.remove(add, safe=True)
                return True
    return False


def _own_add(graph: ir.Graph, value: ir.Value | None) -> ir.Node | None:
    """The sum that makes a value which has no other reader."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type != "Add" or node.domain != "" or node.graph is not graph:
        return None
    return node if len(list(value.uses())) == 1 and not value.is_graph_output() else None
