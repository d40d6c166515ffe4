"""ONNX Runtime's `com.microsoft::QMoE` operator: all experts of a layer from packed bytes, when it means what moec means.

As `MoE` it takes router logits, but always renormalises over the chosen. On the CPU any non-negative weights can be given beside the
logits; CUDA ignores that input, so there other rules go through `kernel.emit_portable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from moec.backends.onnx.packed import Quantized, packed_zeros
from moec.weights import Weight, rowwise

if TYPE_CHECKING:
    from moec.backends.onnx.block import Block
    from moec.backends.onnx.emit import Emitter

CUDA_BLOCKS = (32, 64, 128)


def why_not_qmoe(block: Block, provider: str, rounded: bool) -> str:
    """Why the operator would be wrong or inexact for a block's packed weights, in a few words; empty when it is right.

    Args:
        provider: `cpu` or `cuda`.
        rounded: whether activations may be rounded to 8 bits.
    """
    w_in, w_out = block.w_in, block.w_out
    if not isinstance(w_in, Quantized) or not isinstance(w_out, Quantized):
        return "only one of the experts' matrices is packed"
    if (w_in.bits, w_in.block) != (w_out.bits, w_out.block):
        return "the QMoE operator has one width and one block size for both matrices"
    if provider == "cuda":
        return _why_not_cuda(block, w_in)
    exact = w_in.bits == 4 or (w_in.bits == 2 and w_in.block == 16)
    return "" if exact or rounded else f"the QMoE operator rounds activations to 8 bits for {w_in.bits} bits in blocks of {w_in.block}"


def _why_not_cuda(block: Block, weight: Quantized) -> str:
    if block.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return "the CUDA kernel of QMoE has half precision only"
    sizes = (block.hidden, block.w_out.shape[2])
    if any(size % 64 for size in sizes):
        return f"the CUDA kernel of QMoE needs sizes that are multiples of 64, not {sizes}"
    return "" if weight.block in CUDA_BLOCKS else f"the CUDA kernel of QMoE has no blocks of {weight.block}"


def emit_qmoe(emit: Emitter, block: Block, x: ir.Value, logits: ir.Value, weights: ir.Value | None = None) -> ir.Value:
    """Emit the operator on rows `[T, H]`, which chooses the K largest of `logits [T, E]` and mixes by their softmax.

    Args:
        x, logits: in the block's dtype.
        weights: `[T, E]` to mix by instead, zero where not chosen; only the CPU reads it.
    """
    from moec.backends.onnx.emit import MICROSOFT
    from moec.backends.onnxruntime.kernel import kernel_activation

    w_in, w_out, rule = block.w_in, block.w_out, kernel_activation(block.activation)
    assert isinstance(w_in, Quantized) and isinstance(w_out, Quantized) and rule is not None
    b_in = block.b_in
    if block.activation.gated:
        w_in, b_in = w_in.each(interleave), None if b_in is None else interleave(b_in)
    zeros = [None if q.zero is None else (packed_zeros(q.zero, q.bits), f"{name}.zeros") for q, name in ((w_in, "w_in"), (w_out, "w_out"))]
    given: list[tuple[Weight, str] | None] = [
        (w_in.packed, "w_in.packed"), (w_in.scale, "w_in.scales"), None if b_in is None else (b_in, "b_in"),
        (w_out.packed, "w_out.packed"), (w_out.scale, "w_out.scales"), None if block.b_out is None else (block.b_out, "b_out"),
        None, None, None, *zeros, None,
    ]  # fmt: skip
    tensors = [None if pair is None else emit.weight(*pair) for pair in given] + [weights]
    while tensors[-1] is None:
        tensors.pop()
    return emit(
        "QMoE", x, logits, *tensors, domain=MICROSOFT, k=block.top_k, normalize_routing_weights=int(weights is None),
        expert_weight_bits=w_in.bits, block_size=w_in.block, quant_type="int", weights_prepacked=0, accuracy_level=0, **rule,
    )  # fmt: skip


def emit_weighted(emit: Emitter, block: Block, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType) -> ir.Value:
    """Emit the operator for any chosen `ids` (distinct in a row) and `weights` (not negative), both `[..., K]`, on the CPU.

    The weights themselves serve as logits: the K largest are the chosen, or others with weight zero too.
    """
    width = [-1, block.top_k]
    ids = emit("Reshape", ids, emit.constant(width))
    weights = emit.cast(emit("Reshape", weights, emit.constant(width)), weights_dtype, block.wide)
    none = emit("Expand", emit.number(0.0, block.wide), emit("Concat", emit("Shape", ids, start=0, end=1), emit.constant([block.experts]), axis=0))
    spread = emit.cast(emit("ScatterElements", none, ids, weights, axis=1), block.wide, block.dtype)
    rows = emit("Reshape", block.x, emit.constant([-1, block.hidden]))
    return emit("Reshape", emit_qmoe(emit, block, rows, spread, spread), emit("Shape", block.x), allowzero=1)


def interleave(weight: Weight) -> Weight:
    """Gate and up rows `[E, 2I, …]` (or biases `[E, 2I]`) in turns, as `swiglu_fusion=1` wants them."""
    return rowwise("interleave", lambda t: t.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2).contiguous(), weight)
