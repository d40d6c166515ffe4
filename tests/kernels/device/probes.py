"""Kernels that show what single device functions do. Imported where the interpreter runs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moec.kernels.device.activation import activate, tanh
from moec.kernels.device.arithmetic import rounded
from moec.kernels.device.weights import decode_fp8, decode_integer


@triton.jit
def probe_kernel(given, result, NAME: tl.constexpr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    x = tl.load(given + place)
    if NAME == "fp8":
        y = decode_fp8(x)
    elif NAME == "integer":
        y = decode_integer(x, 100.0)
    elif NAME == "tanh":
        y = tanh(x)
    elif NAME == "rounded":
        y = rounded(x, result.dtype.element_ty)
    else:
        y = activate(x, NAME, 1.0)
    tl.store(result + place, y)


def decode(name: str, given: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`name` of every value; their number is a power of two."""
    result = torch.empty(given.shape, dtype=dtype)
    probe_kernel[(1,)](given, result, NAME=name, SIZE=given.numel())
    return result


@triton.jit
def chain_kernel(given, out, size):
    """`out[p] = given[p - 1] + 1`, the last before the first: a race where given and out are one."""
    program = tl.program_id(0)
    tl.store(out + program, tl.load(given + (program + size - 1) % size) + 1.0)
