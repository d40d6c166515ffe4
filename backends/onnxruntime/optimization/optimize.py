"""Clean-up of a translated graph, and the fusions that ONNX Runtime gains from. Never touches a large weight."""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.folding import fold
from moec.backends.onnxruntime.optimization.fusions import fuse
from moec.backends.onnxruntime.optimization.packing import pack_products
from moec.backends.onnxruntime.optimization.reshapes import spare_reshapes
from moec.backends.onnxruntime.optimization.rotary import fuse_rotary, rotate_by_token
from moec.backends.onnxruntime.optimization.sizes import share_sizes


def optimize(model: ir.Model, optimize_for: str = "latency") -> None:
    """Fold weight transposes lazily and small constants eagerly, fuse, then drop what nobody reads. In place.

    For `latency` products of one value become one, which pays with few tokens and costs with many, see `pack_products`.
    """
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

    fold(model)
    fuse(model)
    fuse_rotary(model)
    rotate_by_token(model.graph)
    if optimize_for == "latency":
        pack_products(model.graph)
    spare_reshapes(model.graph)
    share_sizes(model.graph)
    CommonSubexpressionEliminationPass()(model)  # every layer made the same tables, and asked the same of its sizes
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
