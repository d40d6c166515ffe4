"""Rounding and matrix products, where Triton's interpreter and the hardware have to be made to agree."""

from __future__ import annotations

import triton
import triton.language as tl

from moec.kernels.starting import interpreting

INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 to `dtype`, to the nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        # the interpreter cuts off, or loses the carry into the exponent
        bits = x.to(tl.uint32, bitcast=True)
        y = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        y = tl.where(x != x, 0x7FC0, y).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(dtype)
    return y


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """`acc + a @ b.T` in float32. PRECISION is `ieee` or `tf32`, which matters for float32 only."""
    if INTERPRETED:
        # the interpreter multiplies bfloat16's bits
        acc = tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    return acc
