"""Products with a tile of weights that are plain, or packed and unpacked in registers: the layouts of
`moec.kernels.packed`."""

from __future__ import annotations

import triton
import triton.language as tl

from moec.kernels.device.arithmetic import INTERPRETED, product, rounded


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
def both_nibbles(word, dtype: tl.constexpr):
    """The two 16-bit halves of a word, which are numbers of `dtype`, as a new last dimension."""
    low = (word & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True)
    return tl.join(low, (word >> 16).to(tl.uint16).to(dtype, bitcast=True))


@triton.jit
def decode_words(q, zero, scale, NARROW: tl.constexpr, dtype: tl.constexpr):
    """`(q - zero) * scale` of eight 4-bit integers a word, `[N, W]` to `[N, 8 * W]` in `dtype`, a 16-bit one.

    A nibble in the low bits of 128 (bfloat16) or 1024 (float16) is that number plus itself, so two are had by one
    bitwise operation, and what follows works on two at a time. Nibbles n and n + 4 of a word meet in one register; the
    joins bring them into order, which is one move a pair, and makes nothing of x to be moved. The subtraction is exact.
    zero: float32 `[N, 1]`, or a number. scale: float32 `[N, 1]`; NARROW: `dtype` has it exactly, and then multiplies to
    the same bits as float32, since nothing is rounded before.
    """
    BASE: tl.constexpr = 128.0 if dtype == tl.bfloat16 else 1024.0
    BITS: tl.constexpr = 0x43004300 if dtype == tl.bfloat16 else 0x64006400
    n0 = both_nibbles((q & 0x000F000F) | BITS, dtype)
    n1 = both_nibbles(((q >> 4) & 0x000F000F) | BITS, dtype)
    n2 = both_nibbles(((q >> 8) & 0x000F000F) | BITS, dtype)
    n3 = both_nibbles(((q >> 12) & 0x000F000F) | BITS, dtype)
    raw = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (q.shape[0], q.shape[1] * 8))
    if INTERPRETED:
        # the interpreter computes with bfloat16's bits
        value = rounded((raw.to(tl.float32) - (zero + BASE)) * scale, dtype)
    else:
        whole = raw - (tl.zeros((1, 1), tl.float32) + (zero + BASE)).to(dtype)
        value = whole * scale.to(dtype) if NARROW else rounded(whole.to(tl.float32) * scale, dtype)
    return value


@triton.jit
def rows_of(column, WIDTH: tl.constexpr, HALVES: tl.constexpr, BLOCK_N: tl.constexpr, TURNED: tl.constexpr):
    """Rows `[HALVES * BLOCK_N]` int64 of one block of columns, and which of them there are.

    A gated product has two halves of WIDTH rows, and multiplies both at once: gate and up of a neuron in turn, so that
    one thread has both sums. TURNED: all gates, then all ups, for rows that follow each other are read together. Rows
    beyond WIDTH are the last one again; where TURNED they stay, and are masked, for the same reason.
    """
    lane = tl.arange(0, HALVES * BLOCK_N)
    if TURNED:
        n = column * BLOCK_N + lane % BLOCK_N
        row = lane // BLOCK_N * WIDTH + n
    else:
        n = column * BLOCK_N + lane // HALVES
        row = lane % HALVES * WIDTH + tl.minimum(n, WIDTH - 1)
    return row.to(tl.int64), n < WIDTH


@triton.jit
def gate_and_up(both, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, TURNED: tl.constexpr):
    """The sums `[ROWS, BLOCK_N]` of gates and of ups, from those that `rows_of` ordered."""
    if TURNED:
        pairs = tl.permute(tl.reshape(both, (ROWS, 2, BLOCK_N)), (0, 2, 1))
    else:
        pairs = tl.reshape(both, (ROWS, BLOCK_N, 2))
    gate, up = tl.split(pairs)
    return gate, up


@triton.jit
def load_in_words(start, place, WORDS: tl.constexpr):
    """`start[place]`, 8 or 16 bits each, through the 32 bits around it where WORDS allows.

    An asynchronous copy moves 4 bytes at least: what is narrower would be loaded in the step that needs it, and waited
    for. Neighbours in a word are the next groups of the same row, so memory sends no more for it.
    """
    BITS: tl.constexpr = start.dtype.element_ty.primitive_bitwidth
    if WORDS and BITS < 32:
        EACH: tl.constexpr = 32 // BITS
        word = tl.load(start.to(tl.pointer_type(tl.uint32), bitcast=True) + place // EACH)
        narrow = (word >> ((place % EACH) * BITS).to(tl.uint32)).to(tl.uint16 if BITS == 16 else tl.uint8)
        value = narrow.to(start.dtype.element_ty, bitcast=True)
    else:
        value = tl.load(start + place)
    return value


@triton.jit
def scales(
    scale, zero, row, step, k0, DEPTH: tl.constexpr, GROUP: tl.constexpr, ROW_GROUP: tl.constexpr, WIDE: tl.constexpr,
    ONE: tl.constexpr, WORDS: tl.constexpr, FORMAT: tl.constexpr, HAS_ZERO: tl.constexpr,
):  # fmt: skip
    """Scale and zero point of each weight in float32: `[rows, 1]` where a step stays in one group (`ONE`), else `[rows,
    WIDE]`.

    `step` is how many weights a packed column stands for. WORDS: an expert's scales, and zero points, fill whole words
    of 32 bits.
    """
    groups: tl.constexpr = (DEPTH + GROUP - 1) // GROUP
    first = (row // ROW_GROUP)[:, None] * groups
    if ONE:
        s = load_in_words(scale, first + k0 // GROUP, WORDS).to(tl.float32)
    else:
        column = tl.minimum((k0 + tl.arange(0, WIDE) * step) // GROUP, groups - 1)[None, :]
        s = tl.load(scale + first + column).to(tl.float32)
    if HAS_ZERO and ONE:
        z = load_in_words(zero, first + k0 // GROUP, WORDS).to(tl.float32)
    elif HAS_ZERO:
        z = tl.load(zero + first + column).to(tl.float32)
    elif FORMAT == "int4":
        z = 8.0
    else:
        z = 128.0
    return s, z


@triton.jit
def load_tile(
    weights, row, inside, k0, stride_row, stride_k, DEPTH: tl.constexpr, BLOCK_K: tl.constexpr, STEP: tl.constexpr,
    WHOLE: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """These rows by one step of columns, `[rows, BLOCK_K // STEP]`, zero beyond DEPTH.

    TURNED: rows lie side by side (`stride_row` is 1), as where a model keeps `[E, in, out]`. Then the tile is read as
    `[columns, rows]`, and a thread takes neighbouring rows in one load. WHOLE: all rows are inside. STEP: weights a
    column; 8 are read as one word of 32 bits.
    """
    column = k0 // STEP + tl.arange(0, BLOCK_K // STEP)
    if STEP == 8:
        first = (weights + row[:, None] * stride_row).to(tl.pointer_type(tl.uint32), bitcast=True)
        if DEPTH % BLOCK_K == 0:
            q = tl.load(first + column[None, :])
        else:
            q = tl.load(first + column[None, :], mask=column[None, :] * STEP < DEPTH, other=0)
    elif TURNED:
        place = weights + column[:, None] * stride_k + row[None, :]
        if DEPTH % BLOCK_K == 0 and WHOLE:
            q = tl.load(place)
        elif DEPTH % BLOCK_K == 0:
            q = tl.load(place, mask=inside[None, :], other=0)
        else:
            q = tl.load(place, mask=(column * STEP < DEPTH)[:, None] & inside[None, :], other=0)
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
    acc, x, weights, scale, zero, row, inside, k0, stride_row, stride_k, ROW_COUNT: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_K: tl.constexpr, WHOLE: tl.constexpr, FORMAT: tl.constexpr, TURNED: tl.constexpr, GROUP: tl.constexpr,
    ROW_GROUP: tl.constexpr, WORDS: tl.constexpr, HAS_ZERO: tl.constexpr, LATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`acc + x @ weights[row, k0 : k0 + BLOCK_K].T`.

    x: `[M, BLOCK_K]`, zero beyond DEPTH. weights, scale, zero: pointers to this expert's, of ROW_COUNT rows. row,
    inside: what `rows_of` says. WHOLE, TURNED: see `load_tile`. LATE: scale the product instead of the weights, which
    is less work where M is small; only with one group a step.
    """
    ONE: tl.constexpr = GROUP % BLOCK_K == 0
    EIGHT: tl.constexpr = WORDS and ONE and not TURNED and x.dtype != tl.float32
    STEP: tl.constexpr = (8 if EIGHT else 2) if FORMAT == "int4" else 1
    WIDE: tl.constexpr = BLOCK_K // STEP
    q = load_tile(weights, row, inside, k0, stride_row, stride_k, DEPTH, BLOCK_K, STEP, WHOLE, TURNED)
    if FORMAT == "plain":
        acc = product(x, q, acc, PRECISION)
    else:
        known = tl.minimum(row, ROW_COUNT - 1) if TURNED else row
        s, z = scales(scale, zero, known, STEP, k0, DEPTH, GROUP, ROW_GROUP, WIDE, ONE, WORDS, FORMAT, HAS_ZERO)
        tl.static_assert(ONE or not LATE)
        base = tl.zeros_like(acc) if LATE else acc
        factor = tl.full((1, 1), 1.0, tl.float32) if LATE else s
        if STEP == 8:
            base = product(x, decode_words(q, z, s, scale.dtype.element_ty == x.dtype, x.dtype), base, PRECISION)
        elif FORMAT == "int4":
            low_half = rounded(decode_integer(q & 15, z) * factor, x.dtype)
            high_half = rounded(decode_integer(q >> 4, z) * factor, x.dtype)
            both = tl.reshape(tl.join(low_half, high_half), (q.shape[0], BLOCK_K))
            base = product(x, both, base, PRECISION)
        elif FORMAT == "int8":
            base = product(x, rounded(decode_integer(q, z) * factor, x.dtype), base, PRECISION)
        else:
            tl.static_assert(FORMAT == "fp8")
            base = product(x, rounded(decode_fp8(q) * factor, x.dtype), base, PRECISION)
        acc = acc + base * tl.trans(s) if LATE else base
    return acc
