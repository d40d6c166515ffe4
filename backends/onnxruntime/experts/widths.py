"""The codes of packed experts as the QMoE operator reads them: as they are stored, or wider; and experts of several widths in one block.

On the CPU only 4 bits have an exact kernel that is fast; that of 2 bits, for blocks of 16, is slower than unpacked products (8 experts of
1024 x 2048, two of them a token, half of 2 bits and half of 4, one core: 16.4 ms a token as two operators, 1.1 as one of 4 bits). So where
nothing may be rounded, 2 bits become 4 when the engine is loaded: the file has the narrow codes, the runtime folds a table look-up once, and
experts of 2 and of 4 bits are one operator. Where rounding is allowed, and on CUDA, each width is an operator of its own, given the weights of
its own experts and zero for all tokens that chose none of them; the outputs add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from moec.backends.onnx.packed import Quantized, packed_zeros
from moec.backends.onnx.tensors import add_initializer
from moec.dialect import pack
from moec.weights.lazy import Weight, from_tensor
from moec.weights.widths import order_of, taken

if TYPE_CHECKING:
    from moec.backends.onnx.block import Block
    from moec.backends.onnx.emit import Emitter

Operands = tuple[ir.Value, ir.Value, ir.Value | None]  # codes, scales, zero points
NARROW, WIDE = 2, 4  # bits that are stored, and that they become


def operands(emit: Emitter, block: Block, role: str, bits: int, move: Callable[[Weight], Weight]) -> Operands:
    """One of a block's stacks of matrices in codes of one width.

    Args:
        role: `w_in` or `w_out`.
        bits: 4 for experts of 2 and 4 bits, else the width that all have.
        move: what to do to the rows of every expert's matrix.
    """
    if not block.parts:
        return _stack(emit, getattr(block, role).each(move), role, bits)
    found = [_stack(emit, getattr(p, role).each(move), f"{role}.{getattr(p, role).bits}bit", bits) for p in block.parts]
    order = emit.constant(list(order_of([p.experts for p in block.parts])))
    codes, scales, zeros = (None if any(v is None for v in same) else emit("Gather", emit("Concat", *same, axis=0), order) for same in zip(*found, strict=True))
    assert codes is not None and scales is not None
    return codes, scales, zeros


def _stack(emit: Emitter, weight: Quantized, role: str, bits: int) -> Operands:
    codes, scales = emit.weight(weight.packed, f"{role}.packed"), emit.weight(weight.scale, f"{role}.scales")
    zeros = None if weight.zero is None else emit.weight(packed_zeros(weight.zero, weight.bits), f"{role}.zeros")
    if weight.bits == bits:
        return codes, scales, zeros
    assert (weight.bits, bits) == (NARROW, WIDE)
    codes = _widen(emit, codes, weight.packed.shape, 0 if weight.zero is not None else 2 ** (WIDE - 1) - 2 ** (NARROW - 1))
    if zeros is not None:
        *leading, groups = weight.scale.shape
        narrow, wide = (-(-groups * b // 8) for b in (NARROW, WIDE))  # bytes a row
        zeros = _widen(emit, zeros, (*leading, narrow), 0)
        if wide < 2 * narrow:
            zeros = emit("Slice", zeros, emit.constant([0]), emit.constant([wide]), emit.constant([len(leading)]))
    return codes, scales, zeros


def _widen(emit: Emitter, codes: ir.Value, shape: Sequence[int], middle: int) -> ir.Value:
    """Bytes `shape` of four codes each as twice as many of two, `middle` added to every code."""
    pairs = emit("Gather", _table(emit.graph, middle), emit("Cast", codes, to=int(ir.DataType.INT32)))
    return emit("Reshape", pairs, emit.constant([*shape[:-1], 2 * shape[-1]]))


def _table(graph: ir.Graph, middle: int) -> ir.Value:
    """Each byte's two bytes, `[256, 2]`."""
    name = f"moec/2 bits as 4, {middle} more"
    if name not in graph.initializers:
        codes = (torch.arange(256).unsqueeze(-1) >> torch.arange(0, 8, NARROW)) & (2**NARROW - 1)
        return add_initializer(graph, from_tensor(pack(codes + middle, WIDE), name), name)
    return graph.initializers[name]


# ---------------------------------------------------------------------- an operator a width
def emit_each_width(emit: Emitter, block: Block, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType, provider: str) -> ir.Value:
    """Emit one operator for each width of a block, for any chosen `ids` (distinct in a row) and `weights` (not negative), both `[..., K]`."""
    from moec.backends.onnxruntime.experts.kernel import spread_weights
    from moec.backends.onnxruntime.experts.qmoe import emit_qmoe, kernel_bits

    rows, spread = spread_weights(emit, block, ids, weights, weights_dtype)
    total: ir.Value | None = None
    for part in block.parts:
        own = replace(
            block, w_in=part.w_in, w_out=part.w_out, parts=(), top_k=min(block.top_k, len(part.experts)),
            b_in=_own(block.b_in, part.experts), b_out=_own(block.b_out, part.experts),
        )  # fmt: skip
        share = emit("Gather", spread, emit.constant(list(part.experts)), axis=1)
        if provider == "cuda":
            y = _by_logits(emit, own, rows, share)
        else:
            share = emit.cast(share, block.wide, block.dtype)
            y = emit.cast(emit_qmoe(emit, own, rows, share, share, kernel_bits(own, provider, rounded=True)), block.dtype, block.wide)
        total = y if total is None else emit("Add", total, y)
    assert total is not None
    return emit("Reshape", emit.cast(total, block.wide, block.dtype), emit("Shape", block.x), allowzero=1)


def _own(bias: Weight | None, experts: tuple[int, ...]) -> Weight | None:
    return None if bias is None else taken(bias, experts)


def _by_logits(emit: Emitter, block: Block, rows: ir.Value, share: ir.Value) -> ir.Value:
    """The operator where it reads no weights: it renormalises those of the experts that it has, and what it gives is multiplied by their sum,
    which is zero where it has none of a token's experts. `share [T, E]` and the result in the wide dtype."""
    from moec.backends.onnxruntime.experts.kernel import log_shares
    from moec.backends.onnxruntime.experts.qmoe import emit_qmoe

    y = emit_qmoe(emit, block, rows, emit.cast(log_shares(emit, block, share), block.wide, block.dtype))
    return emit("Mul", emit.cast(y, block.dtype, block.wide), emit("ReduceSum", share, emit.constant([1])))
