"""Steps that both runtimes gain from: what can be computed before anything runs is, and what nobody reads goes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from moec.backends.onnx.rooted_rules import rooted
from moec.backends.onnx.steps import Step
from moec.backends.onnx.tensors import WeightTensor, add_initializer
from moec.errors import MoecError
from moec.startup import swapped
from moec.weights import lazy

FOLD_LIMIT = 4096  # elements: masks and scalars of the graph are folded, weights are not


def folding() -> list[Step]:
    """Fold weight transposes lazily and small constants eagerly; equal nodes become one. No large weight is read."""
    return [
        Step("fold-transposes", fold_transposes),
        Step("fold-constants", fold_constants),
        Step("share-equal-nodes", share_equal_nodes),
    ]


def fold_constants(model: ir.Model) -> None:
    """Compute in place what small constants determine. Batch normalization stays an operator: runtimes put it into
    the convolution before it, and a weight that was changed here would be none of the model's.

    Raises:
        MoecError: M301 for a version of onnxscript that has its rules elsewhere.
    """
    import onnxscript.optimizer as optimizer
    import onnxscript.rewriter as rewriter

    with swapped(rewriter, "_DEFAULT_REWRITE_RULES", rooted(_without_fusing(rewriter))):
        optimizer.optimize_ir(
            model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, onnx_shape_inference=False
        )


def _without_fusing(rewriter: Any) -> tuple[Any, ...]:
    """onnxscript's rules but those that put a batch normalization into another operator."""
    import onnxscript.rewriter.rules.common as rules

    fusing = [rule for name, rule in vars(rules).items() if name.startswith("fuse_batchnorm_into_")]
    every = getattr(rewriter, "_DEFAULT_REWRITE_RULES", ())
    kept = tuple(rule for rule in every if all(rule is not one for one in fusing))
    if len(kept) == len(every):
        what = "this version of onnxscript has its rules for batch normalization elsewhere"
        raise MoecError("M301", what, "onnxscript", "install the version that moec's constraints.txt names")
    return kept


def share_equal_nodes(model: ir.Model) -> None:
    """Let nodes that compute the same be one, in place."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass

    CommonSubexpressionEliminationPass()(model)


def remove_unused(model: ir.Model) -> None:
    """Drop nodes, initializers and opset imports that nobody reads, in place."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)


def fold_transposes(model: ir.Model) -> None:
    """`Transpose(weight)` becomes a transposed lazy weight, so that the runtime need not do it at load time. In
    place."""
    graph = model.graph
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
