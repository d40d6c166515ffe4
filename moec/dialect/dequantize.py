"""`moec::dequantize`: the weight that a packed tensor stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers `[..., K]` of 2, 4 or 8 bits into uint8 `[..., K*bits/8]`, lowest bits first.

    The layout of ONNX Runtime's MatMulNBits and QMoE and, byte for byte, of compressed-tensors' pack-quantized.
    """
    per_byte = 8 // bits
    grouped = values.to(torch.uint8).reshape(*values.shape[:-1], values.shape[-1] // per_byte, per_byte)
    shifts = torch.arange(per_byte, dtype=torch.uint8, device=values.device) * bits
    return (grouped << shifts).sum(-1, dtype=torch.uint8)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(8 // bits, dtype=torch.uint8, device=packed.device) * bits
    return (packed.unsqueeze(-1) >> shifts).bitwise_and_((1 << bits) - 1).flatten(-2)


@torch.library.custom_op("moec::dequantize", mutates_args=())
def dequantize(packed: Tensor, scale: Tensor, zero: Tensor | None = None, *, bits: int) -> Tensor:
    """`(q - zero) * scale`, blockwise along the last dimension.

    Args:
        packed: uint8 `[..., K*bits/8]`, see `pack`; bits is 2, 4 or 8.
        scale: `[..., K/block]` float; the block size follows from the shapes.
        zero: unsigned zero points `[..., K/block]`; absent means `2**(bits-1)`, the symmetric grid.

    Returns:
        `[..., K]` in scale's dtype. Gradients reach the scale; packed integers and zero points are constants.
    """
    return _centred(packed, scale, zero, bits).mul_(scale.unsqueeze(-1)).flatten(-2)


def _centred(packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> Tensor:
    """`q - zero` as `[..., K/block, block]` in scale's dtype."""
    q = _unpack(packed, bits).to(scale.dtype)
    q = q.reshape(*scale.shape, q.shape[-1] // scale.shape[-1])
    offset = float(2 ** (bits - 1)) if zero is None else zero.to(scale.dtype).unsqueeze(-1)
    return q.sub_(offset)  # in place: q is our own, and for an expert of a large model a copy of it is half a gigabyte


@dequantize.register_fake
def _(packed: Tensor, scale: Tensor, zero: Tensor | None = None, *, bits: int) -> Tensor:
    return scale.new_empty((*packed.shape[:-1], packed.shape[-1] * 8 // bits))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.bits = keyword_only_inputs["bits"]


def _backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
    packed, scale, zero = ctx.saved_tensors
    places = _centred(packed, scale, zero, ctx.bits)
    return None, (grad.reshape(places.shape) * places).sum(-1), None


dequantize.register_autograd(_backward, setup_context=_setup_context)
