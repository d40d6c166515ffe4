"""`moec::dequantize`: the weight that a packed tensor stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers `[..., K]` of 2, 4 or 8 bits into uint8 `[..., K*bits/8]`, lowest bits first.

    The layout of ONNX Runtime's MatMulNBits and QMoE and, byte for byte, of compressed-tensors' pack-quantized.
    """
    codes, per_byte = values.to(torch.uint8).contiguous(), 8 // bits
    if per_byte == 1 or codes.numel() == 0:
        return codes[..., ::per_byte]
    flat = codes.flatten()
    flat = flat.clone() if flat.storage_offset() % per_byte else flat  # a word begins where its size divides the place
    words = flat.view(_WORDS[per_byte])  # the first of the codes in the lowest byte
    packed = words.clone()
    for k in range(1, per_byte):
        packed.bitwise_or_(words >> k * (8 - bits))
    return packed.bitwise_and_(255).to(torch.uint8).view(*codes.shape[:-1], codes.shape[-1] // per_byte)


_WORDS = {2: torch.int16, 4: torch.int32}  # of so many codes, a byte each


def _unpack(packed: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(8 // bits, dtype=torch.uint8, device=packed.device) * bits
    return (packed.unsqueeze(-1) >> shifts).bitwise_and_((1 << bits) - 1).flatten(-2)


BLOCK_NUMBERS = 2**24  # are unpacked at a time: beside an expert of a large model there is not room for it twice


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
    width = packed.shape[-1] * 8 // bits
    result = scale.new_empty((*packed.shape[:-1], width))
    rows, parts = (
        result.view(-1, width),
        [None if part is None else part.reshape(-1, part.shape[-1]) for part in (packed, scale, zero)],
    )
    step = max(1, BLOCK_NUMBERS // max(1, width))
    for start in range(0, len(rows), step):
        codes, scales, zeros = (None if part is None else part[start : start + step] for part in parts)
        assert codes is not None and scales is not None
        rows[start : start + step] = _centred(codes, scales, zeros, bits).mul_(scales.unsqueeze(-1)).flatten(-2)
    return result


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
