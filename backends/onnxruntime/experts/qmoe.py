"""ONNX Runtime's `com.microsoft::QMoE` operator: all experts of a layer from packed bytes, when it means what moec
means.

As `MoE` it takes router logits, but always renormalises over the chosen. On the CPU any non-negative weights can be
given beside the logits; CUDA ignores that input, so there other rules go through `kernel.emit_portable`.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.emit import MICROSOFT, Emitter
from moec.backends.onnx.moe_node import MoeNode, Part
from moec.backends.onnxruntime.experts.mixing import spread_weights
from moec.backends.onnxruntime.experts.native_rule import kernel_activation
from moec.backends.onnxruntime.experts.operands import NARROW, WIDE, interleave, operands
from moec.weights.lazy import Weight
from moec.weights.weight import PackedWeight

CUDA_BLOCKS = (32, 64, 128)
# the block size at which the CPU's kernel of 2 bits rounds nothing, and takes 15 times as long for one token as that of
# 4
SLOW_NARROW = 16


def why_not_qmoe(block: MoeNode, provider: str, rounded: bool) -> str:
    """Why the operator would be wrong or inexact for a block's packed weights, in a few words; empty when it is right.

    Args:
        provider: `cpu` or `cuda`.
        rounded: whether activations may be rounded to 8 bits.
    """
    w_in, w_out = block.w_in, block.w_out
    if not isinstance(w_in, PackedWeight) or not isinstance(w_out, PackedWeight):
        return "only one of the experts' matrices is packed"
    if (w_in.bits, w_in.group) != (w_out.bits, w_out.group):
        return "the QMoE operator has one width and one block size for both matrices"
    if provider == "cuda":
        return _why_not_cuda(block, w_in)
    return (
        "" if rounded or w_in.bits <= WIDE else f"the QMoE operator rounds activations to 8 bits for {w_in.bits} bits"
    )


def _why_not_cuda(block: MoeNode, weight: PackedWeight) -> str:
    if block.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return "the CUDA kernel of QMoE has half precision only"
    sizes = (block.hidden, block.w_out.shape[2])
    if any(size % 64 for size in sizes):
        return f"the CUDA kernel of QMoE needs sizes that are multiples of 64, not {sizes}"
    return "" if weight.group in CUDA_BLOCKS else f"the CUDA kernel of QMoE has no blocks of {weight.group}"


def each_width(block: MoeNode, provider: str, rounded: bool) -> bool:
    """Whether the widths of a block's experts become operators of their own, instead of one in the widest."""
    return bool(block.parts) and (
        provider == "cuda"
        or (rounded and kernel_bits(_narrowest(block), provider, rounded) != kernel_bits(block, provider, rounded))
    )


def _narrowest(block: MoeNode) -> Part:
    return min(block.parts, key=lambda p: p.w_in.bits)


def kernel_bits(block: MoeNode | Part, provider: str, rounded: bool) -> int:
    """The width of the codes that one operator reads: not less than 4 on the CPU, unless its kernel of 2 bits is one
    that rounds activations."""
    w_in = block.w_in
    assert isinstance(w_in, PackedWeight)
    wider = provider == "cpu" and w_in.bits == NARROW and (not rounded or w_in.group <= SLOW_NARROW)
    return WIDE if wider else w_in.bits


def emit_qmoe(
    emit: Emitter, block: MoeNode, x: ir.Value, logits: ir.Value, weights: ir.Value | None = None, bits: int = 0
) -> ir.Value:
    """Emit the operator on rows `[T, H]`, which chooses the K largest of `logits [T, E]` and mixes by their softmax.

    Args:
        x, logits: in the block's dtype.
        weights: `[T, E]` to mix by instead, zero where not chosen; only the CPU reads it.
        bits: of the codes that it reads, see `kernel_bits`; those that are stored when 0.
    """
    w_in, rule = block.w_in, kernel_activation(block.activation)
    assert isinstance(w_in, PackedWeight) and rule is not None
    turn = interleave if block.activation.gated else _as_it_is
    bits, b_in = bits or w_in.bits, None if block.b_in is None else turn(block.b_in)
    first, second = operands(emit, block, "w_in", bits, turn), operands(emit, block, "w_out", bits, _as_it_is)
    biases = [None if b is None else emit.weight(b, role) for b, role in ((b_in, "b_in"), (block.b_out, "b_out"))]
    tensors = [*first[:2], biases[0], *second[:2], biases[1], None, None, None, first[2], second[2], None, weights]
    while tensors[-1] is None:
        tensors.pop()
    return emit(
        "QMoE", x, logits, *tensors, domain=MICROSOFT, k=block.top_k, normalize_routing_weights=int(weights is None),
        expert_weight_bits=bits, block_size=w_in.group, quant_type="int", weights_prepacked=0, accuracy_level=0, **rule,
    )  # fmt: skip


def _as_it_is(weight: Weight) -> Weight:
    return weight


def emit_weighted(
    emit: Emitter, block: MoeNode, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType, bits: int = 0
) -> ir.Value:
    """Emit the operator for any chosen `ids` (distinct in a row) and `weights` (not negative), both `[..., K]`, on the
    CPU.

    The weights themselves serve as logits: the K largest are the chosen, or others with weight zero too.
    """
    rows, spread = spread_weights(emit, block, ids, weights, weights_dtype)
    spread = emit.cast(spread, block.wide, block.dtype)
    return emit("Reshape", emit_qmoe(emit, block, rows, spread, spread, bits), emit("Shape", block.x), allowzero=1)
