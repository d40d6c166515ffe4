"""Products of one value with several weights become one: queries, keys and values; gate and up. One kernel reads the row once."""

from __future__ import annotations

import onnx_ir as ir
import torch

from moec import weights as lazy
from moec.backends.onnxruntime.tensors import WeightTensor, add_initializer


def pack_products(graph: ir.Graph) -> int:
    """Join the `MatMul`s of one value with lazy weights `[in, out]` of one depth, in place; returns how many values had several.

    Measured for one token on two cores: three products of 768 x 768 in 0.81 of their time, no difference from 128 tokens on.
    """
    values = [*graph.inputs, *(v for node in graph for v in node.outputs)]
    return sum(_pack(graph, value) for value in values)


def _pack(graph: ir.Graph, value: ir.Value) -> bool:
    siblings = [node for node, index in value.uses() if index == 0 and _weight(node) is not None and node.graph is graph]
    if len(siblings) < 2 or len({_weight(node).dtype for node in siblings}) != 1:  # type: ignore[union-attr]
        return False
    place = {node: n for n, node in enumerate(graph)}
    siblings.sort(key=place.__getitem__)
    weights = [w for node in siblings if (w := _weight(node)) is not None]
    name = "+".join(str(node.inputs[1].name) for node in siblings if node.inputs[1] is not None)
    packed = add_initializer(graph, lazy.concat(weights, 1), name)
    first = siblings[0]
    product = ir.node("MatMul", [value, packed], name=f"{first.name}/packed")
    product.outputs[0].name = f"{first.outputs[0].name}/packed"
    product.outputs[0].type = first.outputs[0].type
    sizes = add_initializer(graph, lazy.from_tensor(_sizes(weights), f"{name}/sizes"), f"{name}/sizes")
    split = ir.node("Split", [product.outputs[0], sizes], {"axis": -1}, num_outputs=len(siblings), name=f"{first.name}/split")
    graph.insert_before(first, [product, split])
    for node, output in zip(siblings, split.outputs, strict=True):
        old = node.outputs[0]
        output.name, output.type, output.shape = old.name, old.type, old.shape
        old.name = None
        ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
        held = node.inputs[1]
        graph.remove(node, safe=True)
        if held is not None and not held.uses():
            graph.initializers.pop(str(held.name), None)
    return True


def _weight(node: ir.Node) -> lazy.Weight | None:
    """The lazy matrix of a product, None where the node is none."""
    held = node.inputs[1].const_value if node.op_type == "MatMul" and node.domain == "" and node.inputs[1] is not None else None
    return held.weight if isinstance(held, WeightTensor) and len(held.weight.shape) == 2 else None


def _sizes(weights: list[lazy.Weight]) -> torch.Tensor:
    return torch.tensor([w.shape[1] for w in weights])
