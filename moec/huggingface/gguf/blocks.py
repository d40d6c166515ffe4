"""A tensor of a GGUF file as bytes: floats, or blocks of 32 integers with a scale in 16 bits, Q4_0 and Q8_0.

Both forms of integers are symmetric: a number is `(code - 8) * scale` in Q4_0, and `code * scale` with a signed code in
Q8_0. So moec's symmetric groups of 32 are written code by code. A group of 64 or 128 is two or four blocks with one
scale, which changes no number and takes more bytes. A block of Q4_0 holds its first 16 codes in the low halves of
its bytes, the others in the high ones. Spec: `block_q4_0` and `block_q8_0` in ggml's ggml-common.h.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from moec.dialect import pack
from moec.huggingface.saving.half_precision import Rounding
from moec.weights import lazy
from moec.weights.lazy import Weight
from moec.weights.weight import PackedWeight

BLOCK = 32
SCALE_BYTES = 2
BLOCK_BYTES = {"Q4_0": SCALE_BYTES + 16, "Q8_0": SCALE_BYTES + 32}
BITS = {"Q4_0": 4, "Q8_0": 8}
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def form_of(weight: Weight, plain: str) -> str:
    """The name of the form in which a tensor is written: vectors and routers as F32, packed ones as they are.

    Args:
        weight: the tensor. plain: the form of matrices of floats.
    """
    if isinstance(weight.coded, PackedWeight):
        return {bits: name for name, bits in BITS.items()}[weight.coded.bits]
    return plain if len(weight.shape) > 1 else "F32"


def why_not(weight: Weight) -> str:
    """Why a packed weight has no image in Q4_0 or Q8_0; empty where it has one."""
    coded = weight.coded
    if not isinstance(coded, PackedWeight):
        return ""
    if coded.bits not in BITS.values():
        return f"{coded.bits} bits, and the file's forms have 4 and 8"
    if coded.zero is not None:
        return "zero points, and the file's integers are symmetric"
    return "" if coded.group % BLOCK == 0 else f"groups of {coded.group}, and a block of the file holds {BLOCK}"


def as_bytes(name: str, weight: Weight, form: str, rounding: Rounding) -> Weight:
    """The tensor's bytes, uint8 `[…, out, bytes of a row]`, made row by row when they are read.

    Args:
        name: for `rounding`, which counts what becomes of the numbers.
        form: `F32`, `F16`, `BF16`, `Q4_0` or `Q8_0`; the last two for a weight with such codes.
    """
    if form in FLOATS:
        function = partial(_float_bytes, name, FLOATS[form], rounding)
        if len(weight.shape) < 2:  # its bytes are no rows
            return lazy.whole(form, function, weight)
        return replace(lazy.rowwise(form, function, weight), atomic=weight.atomic)
    coded = weight.coded
    assert isinstance(coded, PackedWeight) and not why_not(weight)
    found = lazy.rowwise(form, partial(_block_bytes, name, coded.bits, rounding), coded.packed, coded.scale)
    return replace(found, atomic=coded.packed.atomic)


def _float_bytes(name: str, dtype: torch.dtype, rounding: Rounding, values: Tensor) -> Tensor:
    found = rounding.cast(name, dtype, values)
    if found.device.type == "meta":
        return found.new_empty((*found.shape[:-1], found.shape[-1] * dtype.itemsize), dtype=torch.uint8)
    return found.contiguous().view(torch.uint8)


def _block_bytes(name: str, bits: int, rounding: Rounding, packed: Tensor, scale: Tensor) -> Tensor:
    blocks = packed.shape[-1] * 8 // bits // BLOCK
    scale = rounding.half(name, bits, scale).repeat_interleave(blocks // scale.shape[-1], -1)
    codes = packed.reshape(*packed.shape[:-1], blocks, BLOCK * bits // 8)
    if bits == 4:
        numbers = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
        codes = numbers[..., :16] | (numbers[..., 16:] << 4)
    else:
        codes = codes ^ 128  # from an offset of 128 to a signed byte
    if scale.device.type == "meta":
        return packed.new_empty((*packed.shape[:-1], blocks * (SCALE_BYTES + codes.shape[-1])))
    scales = scale.contiguous().unsqueeze(-1).view(torch.uint8)
    return torch.cat((scales, codes), -1).flatten(-2)


def from_blocks(stored: Weight, form: str) -> PackedWeight:
    """What blocks of Q4_0 or Q8_0, uint8 `[…, out, bytes of a row]`, stand for, as `moec::dequantize` reads it."""
    codes = lazy.rowwise(f"codes[{form}]", partial(_codes, form), stored)
    return PackedWeight(codes, lazy.rowwise(f"scales[{form}]", partial(_scales, form), stored), None, BITS[form])


def _blocks(stored: Tensor, form: str) -> Tensor:
    size = BLOCK_BYTES[form]
    return stored.reshape(*stored.shape[:-1], stored.shape[-1] // size, size)


def _codes(form: str, stored: Tensor) -> Tensor:
    codes = _blocks(stored, form)[..., SCALE_BYTES:]
    if form == "Q8_0":
        return (codes ^ 128).flatten(-2)
    numbers = torch.cat((codes & 15, codes >> 4), -1)
    if stored.device.type == "meta":
        return numbers.new_empty((*numbers.shape[:-2], numbers.shape[-2] * numbers.shape[-1] // 2))
    return pack(numbers, 4).flatten(-2)


def _scales(form: str, stored: Tensor) -> Tensor:
    scales = _blocks(stored, form)[..., :SCALE_BYTES]
    if stored.device.type == "meta":
        return scales.new_empty(scales.shape[:-1], dtype=torch.float16)
    return scales.contiguous().view(torch.float16).squeeze(-1)
