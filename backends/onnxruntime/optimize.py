"""Clean-up of a translated graph, and the fusions that ONNX Runtime gains from. Never touches a large weight."""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.folding import fold
from moec.backends.onnxruntime.fusions import fuse
from moec.backends.onnxruntime.packing import pack_products
from moec.backends.onnxruntime.rotary import fuse_rotary


def optimize(model: ir.Model) -> None:
    """Fold weight transposes lazily and small constants eagerly, fuse, then drop what nobody reads. In place."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

    fold(model)
    fuse(model)
    if fuse_rotary(model):
        CommonSubexpressionEliminationPass()(model)  # every layer made the same tables
    pack_products(model.graph)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
