"""The packed operands of QMoE: codes as they are stored, or wider, in stacks of all experts that the kernel reads.

On the CPU only 4 bits have an exact kernel that is fast; that of 2 bits, for blocks of 16, is slower than unpacked
products (8 experts of 1024 x 2048, two of them a token, half of 2 bits and half of 4, one core: 16.4 ms a token as two
operators, 1.1 as one of 4 bits). So where nothing may be rounded, 2 bits become 4 when the engine is loaded: the file
has the narrow codes, the runtime folds a table look-up once, and experts of 2 and of 4 bits are one operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import torch

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import MoeNode
from moec.backends.onnx.packed import packed_zeros
from moec.backends.onnx.tensors import add_initializer
from moec.dialect import pack
from moec.weights.lazy import Weight, from_tensor, rowwise
from moec.weights.weight import PackedWeight
from moec.weights.widths import order_of

Operands = tuple[ir.Value, ir.Value, ir.Value | None]  # codes, scales, zero points
NARROW, WIDE = 2, 4  # bits that are stored, and that they become


def operands(emit: Emitter, block: MoeNode, role: str, bits: int, move: Callable[[Weight], Weight]) -> Operands:
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
    codes, scales, zeros = (
        None if any(v is None for v in same) else emit("Gather", emit("Concat", *same, axis=0), order)
        for same in zip(*found, strict=True)
    )
    assert codes is not None and scales is not None
    return codes, scales, zeros


def _stack(emit: Emitter, weight: PackedWeight, role: str, bits: int) -> Operands:
    codes, scales = emit.weight(weight.packed, f"{role}.packed"), emit.weight(weight.scale, f"{role}.scales")
    zeros = None if weight.zero is None else emit.weight(packed_zeros(weight.zero, weight.bits), f"{role}.zeros")
    if weight.bits == bits:
        return codes, scales, zeros
    assert (weight.bits, bits) == (NARROW, WIDE)
    codes = _widen(
        emit, codes, weight.packed.shape, 0 if weight.zero is not None else 2 ** (WIDE - 1) - 2 ** (NARROW - 1)
    )
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


def interleave(weight: Weight) -> Weight:
    """Gate and up rows `[E, 2I, …]` (or biases `[E, 2I]`) in turns, as `swiglu_fusion=1` wants them."""
    return rowwise("interleave", lambda t: t.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2).contiguous(), weight)
