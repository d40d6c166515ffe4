"""Products with a tile of weights that are plain, or packed and unpacked in registers: the layouts of
`moec.kernels.packed`."""

from __future__ import annotations

import triton
import triton.language as tl

from moec.kernels.device.arithmetic import product, rounded


@triton.jit
def decode_fp8(byte):
    """FP8 E4M3 (OCP, no infinity) in float32: its bits are those of a float16 whose exponent is short by 8."""
    half = (((byte & 0x80).to(tl.uint16) << 8) | ((byte & 0x7F).to(tl.uint16) << 7)).to(tl.float16, bitcast=True)
    return tl.where((byte & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)


@triton.jit
def decode_integer(q, zero):
    """`q - zero` in float32; q below 2**23 becomes the low bits of 2**23, which costs no conversion."""
    return (q.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - (zero + 8388608.0)


@triton.jit
def halves(x, FORMAT: tl.constexpr):
    """The columns of x that meet a byte's low and high nibble; without nibbles x twice."""
    if FORMAT == "int4":
        low, high = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
    else:
        low, high = x, x
    return low, high


@triton.jit
def scales(
    scale, zero, row, step, k0, DEPTH: tl.constexpr, GROUP: tl.constexpr, ROW_GROUP: tl.constexpr, WIDE: tl.constexpr,
    ONE: tl.constexpr, FORMAT: tl.constexpr, HAS_ZERO: tl.constexpr,
):  # fmt: skip
    """Scale and zero point of each weight in float32: `[rows, 1]` where a step stays in one group (`ONE`), else `[rows,
    WIDE]`.

    `step` is how many weights a packed column stands for.
    """
    groups: tl.constexpr = (DEPTH + GROUP - 1) // GROUP
    column = tl.minimum((k0 + tl.arange(0, WIDE) * step) // GROUP, groups - 1)[None, :]
    if ONE:
        place = (row // ROW_GROUP)[:, None] * groups + k0 // GROUP
    else:
        place = (row // ROW_GROUP)[:, None] * groups + column
    s = tl.load(scale + place).to(tl.float32)
    if HAS_ZERO:
        z = tl.load(zero + place).to(tl.float32)
    elif FORMAT == "int4":
        z = 8.0
    else:
        z = 128.0
    return s, z


@triton.jit
def load_tile(
    weights, n, row, k0, stride_row, stride_k, FIRST: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, BLOCK_N:
    tl.constexpr, BLOCK_K: tl.constexpr, STEP: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """Rows `FIRST + n` by one step of columns, `[N, BLOCK_K // STEP]`, zero beyond DEPTH.

    TURNED: rows lie side by side (`stride_row` is 1), as where a model keeps `[E, in, out]`. Then the tile is read as
    `[K, N]`: a thread takes neighbouring rows in one load. Rows beyond WIDTH are masked, not moved to the last one,
    since the compiler joins loads only where it sees that addresses follow each other.
    """
    column = k0 // STEP + tl.arange(0, BLOCK_K // STEP)
    if TURNED:
        place = weights + FIRST + column[:, None] * stride_k + n.to(tl.int64)[None, :]
        if DEPTH % BLOCK_K == 0 and WIDTH % BLOCK_N == 0:
            q = tl.load(place)
        elif DEPTH % BLOCK_K == 0:
            q = tl.load(place, mask=(n < WIDTH)[None, :], other=0)
        else:
            q = tl.load(place, mask=(column * STEP < DEPTH)[:, None] & (n < WIDTH)[None, :], other=0)
        q = tl.trans(q)
    else:
        place = weights + row[:, None] * stride_row + column[None, :] * stride_k
        if DEPTH % BLOCK_K == 0:
            q = tl.load(place)
        else:
            q = tl.load(place, mask=column[None, :] * STEP < DEPTH, other=0)
    return q


@triton.jit
def times_weights(
    acc, low, high, weights, scale, zero, n, k0, stride_row, stride_k, FIRST: tl.constexpr, WIDTH: tl.constexpr, DEPTH:
    tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FORMAT: tl.constexpr, TURNED: tl.constexpr, GROUP:
    tl.constexpr, ROW_GROUP: tl.constexpr, HAS_ZERO: tl.constexpr, LATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc + x @ weights[FIRST + n, k0 : k0 + BLOCK_K].T`.

    low, high: x `[M, BLOCK_K]` through `halves`, zero beyond DEPTH. weights, scale, zero: pointers to this expert's.
    n: `[N]` int32, of which those below WIDTH are rows. TURNED: see `load_tile`. LATE: scale the product instead of the
    weights, which is less work where M is small; only with one group a step.
    """
    STEP: tl.constexpr = 2 if FORMAT == "int4" else 1
    WIDE: tl.constexpr = BLOCK_K // STEP
    row = tl.minimum(n, WIDTH - 1).to(tl.int64) + FIRST
    q = load_tile(weights, n, row, k0, stride_row, stride_k, FIRST, WIDTH, DEPTH, BLOCK_N, BLOCK_K, STEP, TURNED)
    if FORMAT == "plain":
        acc = product(low, q, acc, PRECISION)
    else:
        ONE: tl.constexpr = GROUP % BLOCK_K == 0
        s, z = scales(scale, zero, row, STEP, k0, DEPTH, GROUP, ROW_GROUP, WIDE, ONE, FORMAT, HAS_ZERO)
        tl.static_assert(ONE or not LATE)
        base = tl.zeros_like(acc) if LATE else acc
        factor = tl.full((1, 1), 1.0, tl.float32) if LATE else s
        if FORMAT == "int4":
            base = product(low, rounded(decode_integer(q & 15, z) * factor, low.dtype), base, PRECISION)
            base = product(high, rounded(decode_integer(q >> 4, z) * factor, low.dtype), base, PRECISION)
        elif FORMAT == "int8":
            base = product(low, rounded(decode_integer(q, z) * factor, low.dtype), base, PRECISION)
        else:
            tl.static_assert(FORMAT == "fp8")
            base = product(low, rounded(decode_fp8(q) * factor, low.dtype), base, PRECISION)
        acc = acc + base * tl.trans(s) if LATE else base
    return acc
