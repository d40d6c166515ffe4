"""Clean-up of a translated graph, and the fusions that ONNX Runtime gains from. Never touches a large weight."""

from __future__ import annotations

from moec.backends.onnx.folding import folding, remove_unused, share_equal_nodes
from moec.backends.onnx.steps import Step
from moec.backends.onnxruntime.attention.rotary_inside import rotate_inside
from moec.backends.onnxruntime.optimization.cuts import cut_by_kind, join_cuts
from moec.backends.onnxruntime.optimization.filled import join_filled
from moec.backends.onnxruntime.optimization.fusions import fuse
from moec.backends.onnxruntime.optimization.packing import pack_products
from moec.backends.onnxruntime.optimization.ranges import start_ranges
from moec.backends.onnxruntime.optimization.reshapes import spare_reshapes
from moec.backends.onnxruntime.optimization.rotary import fuse_rotary, rotate_by_token
from moec.backends.onnxruntime.optimization.sizes import share_sizes
from moec.backends.onnxruntime.optimization.skip_biases import take_biases


def optimization(optimize_for: str = "latency", provider: str = "cpu") -> list[Step]:
    """Fold, fuse, then drop what nobody reads.

    For `latency` products of one value become one, which pays with few tokens and costs with many, see `pack_products`.
    """
    return [
        *folding(),
        Step("join-filled", join_filled),
        Step("fuse-norms", fuse, provider),
        Step("fuse-rotary", fuse_rotary),
        *([Step("start-ranges", start_ranges)] if provider == "cuda" else []),
        Step("rotate-by-token", rotate_by_token),
        Step("cut-by-kind", cut_by_kind),
        *([Step("pack-products", pack_products), Step("join-cuts", join_cuts)] if optimize_for == "latency" else []),
        *([Step("take-biases", take_biases)] if provider == "cuda" else []),
        Step("spare-reshapes", spare_reshapes),
        Step("share-sizes", share_sizes),
        Step("share-equal-tables", share_equal_nodes),  # every layer made the same, and asked the same of its sizes
        Step("rotate-inside", rotate_inside),
        Step("remove-unused", remove_unused),
    ]
