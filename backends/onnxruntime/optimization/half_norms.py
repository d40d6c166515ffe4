"""Norms of rows in half precision that scale in float32 (gpt-oss, Gemma) become norms in half precision.

CUDA's kernel computes in float32 whatever it reads; casts around it are two kernels more, and keep the sum before it
out of it. What changes is a rounding to half of the scale, which a checkpoint has in bfloat16, and of the row before it
is scaled: as much as any other operator of such a model rounds.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from moec.backends.onnx.emit import take_place
from moec.backends.onnx.tensors import WeightTensor, add_initializer
from moec.weights import lazy

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def narrow_norms(model: ir.Model) -> int:
    """Replace norms in float32 between casts from and to float16, in place; returns how many."""
    return sum(_narrow(model.graph, n) for n in list(model.graph) if n.op_type == "SimplifiedLayerNormalization")


def _narrow(graph: ir.Graph, norm: ir.Node) -> bool:
    rows, scale = norm.inputs[0], norm.inputs[1]
    before = None if rows is None else rows.producer()
    source = before.inputs[0] if before is not None and before.op_type == "Cast" else None
    readers = [node for node, _ in norm.outputs[0].uses()]
    if source is None or source.dtype != HALF or scale is None or not readers or norm.outputs[0].is_graph_output():
        return False
    if any(node.op_type != "Cast" or node.attributes.get_int("to") != int(HALF) for node in readers):
        return False
    y = ir.node(norm.op_type, [source, _half(graph, norm, scale)], {**norm.attributes}, name=norm.name)
    graph.insert_before(norm, y)
    first, *others = readers
    for other in others:
        ir.convenience.replace_all_uses_with(other.outputs[0], first.outputs[0], replace_graph_outputs=True)
    take_place(y.outputs[0], first.outputs[0])
    for node in (*readers, norm):
        graph.remove(node, safe=True)
    if before is not None and not before.outputs[0].uses() and not before.outputs[0].is_graph_output():
        graph.remove(before, safe=True)
    if scale.is_initializer() and not scale.uses():
        graph.initializers.pop(str(scale.name), None)
    return True


def _half(graph: ir.Graph, norm: ir.Node, scale: ir.Value) -> ir.Value:
    """The scale in float16: the weight itself where it was cast from one, else rounded when the engine is written."""
    made = scale.producer()
    if made is not None and made.op_type == "Cast" and made.inputs[0] is not None and made.inputs[0].dtype == HALF:
        return made.inputs[0]
    if isinstance(scale.const_value, WeightTensor):
        weight = lazy.cast(scale.const_value.weight, torch.float16)
        return add_initializer(graph, weight, f"{scale.name}.half")
    cast = ir.node("Cast", [scale], {"to": int(HALF)}, name=f"{norm.name}/half")
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = cast.name, ir.TensorType(HALF), scale.shape
    graph.insert_before(norm, cast)
    return cast.outputs[0]
