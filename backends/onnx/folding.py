"""What can be computed before anything runs: transposed weights, lazily, and small constants."""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.tensors import WeightTensor, add_initializer
from moec.weights import lazy

FOLD_LIMIT = 4096  # elements: masks and scalars of the graph are folded, weights are not


def fold(model: ir.Model) -> None:
    """Fold weight transposes lazily and small constants eagerly, in place; equal nodes become one. No large weight is
    read."""
    import onnxscript.optimizer as optimizer
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass

    _fold_transposes(model.graph)
    optimizer.optimize_ir(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, onnx_shape_inference=False)
    CommonSubexpressionEliminationPass()(model)


def _fold_transposes(graph: ir.Graph) -> None:
    """`Transpose(weight)` becomes a transposed lazy weight, so that the runtime need not do it at load time."""
    done: dict[str, ir.Value] = {}
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" and node.domain == "" else None
        if source is None or not isinstance(source.const_value, WeightTensor):
            continue
        weight = source.const_value.weight
        moved = [
            i for i, p in enumerate(node.attributes.get_ints("perm", list(range(len(weight.shape)))[::-1])) if i != p
        ]
        if len(moved) != 2:
            continue
        name = f"{source.name}.T{moved[0]}{moved[1]}" if len(weight.shape) != 2 else f"{source.name}.T"
        if name not in done:
            done[name] = add_initializer(graph, lazy.transpose(weight, *moved), name)
        ir.convenience.replace_all_uses_with(node.outputs[0], done[name])
        graph.remove(node, safe=True)
