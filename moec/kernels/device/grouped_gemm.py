"""The two grouped products of `moec::experts`: rows gathered and activation applied on the way in, rows summed by
weight on the way out.

Between the kernels, rows lie by pair (token * K + k), whatever order the tiles work in. Parameters are inputs, numbers,
outputs, in this order, which is the one that TensorRT passes; inputs that are absent are None.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moec.kernels.device.activation import activate, gate_times_up
from moec.kernels.device.align import sorted_tile, token_tile
from moec.kernels.device.arithmetic import rounded
from moec.kernels.device.weights import gate_and_up, rows_of, times_weights


@triton.jit
def place_of(program, tiles, COLUMNS: tl.constexpr, BAND: tl.constexpr):
    """(tile, block of columns) of a piece of work: BAND tiles after each other read the same weights, which then come
    from the cache."""
    band = program // (BAND * COLUMNS)
    height = tl.minimum(tiles - band * BAND, BAND)
    inside = program - band * BAND * COLUMNS
    return band * BAND + inside % height, inside // height


@triton.jit
def find_tile(
    ids, order, offsets, tile_expert, tile, tokens, EXPERTS: tl.constexpr, K: tl.constexpr, K_WIDE: tl.constexpr, ROWS:
    tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Expert, pairs and liveness of a tile's rows, from the ids alone for few tokens, else from `align_kernel`'s
    tables."""
    if FEW:
        expert, pairs, live = token_tile(ids, tile, tokens, EXPERTS, K, K_WIDE, ROWS)
    else:
        expert, pairs, live = sorted_tile(tile_expert, order, offsets, tile, ROWS)
    return expert, pairs, live


@triton.jit
def rows_in_tile(
    expert, pairs, live, column, x, route_weights, w, scale, zero, bias, stride_x, stride_expert, stride_row, stride_k,
    stride_scale, hidden, K: tl.constexpr, DEPTH: tl.constexpr, INNER: tl.constexpr, BEFORE: tl.constexpr, GATED:
    tl.constexpr, NAME: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, LIMIT: tl.constexpr, CLAMP_AFTER:
    tl.constexpr, HAS_BIAS: tl.constexpr, FORMAT: tl.constexpr, TURNED: tl.constexpr, GROUP: tl.constexpr, ROW_GROUP:
    tl.constexpr, WORDS: tl.constexpr, HAS_ZERO: tl.constexpr, LATE: tl.constexpr, PRECISION: tl.constexpr, ROWS:
    tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of `rows_in_kernel`: the rows of `pairs` by one block of the columns of one expert."""
    e = expert.to(tl.int64)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    own = w + e * stride_expert
    own_scale = scale if FORMAT == "plain" else scale + e * stride_scale
    own_zero = zero + e * stride_scale if HAS_ZERO else zero
    token = x + (pairs // K).to(tl.int64)[:, None] * stride_x
    HALVES: tl.constexpr = 2 if GATED else 1
    row, inside = rows_of(column, INNER, HALVES, BLOCK_N, TURNED)
    acc = tl.zeros((ROWS, HALVES * BLOCK_N), tl.float32)
    if BEFORE:
        weight = tl.load(route_weights + pairs).to(tl.float32)[:, None]
    for k0 in range(0, DEPTH, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)[None, :]
        if DEPTH % BLOCK_K == 0:
            a = tl.load(token + k)
        else:
            a = tl.load(token + k, mask=k < DEPTH, other=0.0)
        if BEFORE:
            a = rounded(a.to(tl.float32) * weight, a.dtype)
        acc = times_weights(
            acc, a, own, own_scale, own_zero, row, inside, k0, stride_row, stride_k, HALVES * INNER, DEPTH, BLOCK_K,
            INNER % BLOCK_N == 0, FORMAT, TURNED, GROUP, ROW_GROUP, WORDS, HAS_ZERO, LATE, PRECISION,
        )  # fmt: skip
    own_bias = bias + e * (HALVES * INNER) + tl.minimum(n, INNER - 1) if HAS_BIAS else bias
    if GATED:
        gate, up = gate_and_up(acc, ROWS, BLOCK_N, TURNED)
        if HAS_BIAS:
            gate += tl.load(own_bias).to(tl.float32)[None, :]
            up += tl.load(own_bias + INNER).to(tl.float32)[None, :]
        result = gate_times_up(gate, up, NAME, ALPHA, BETA, LIMIT, CLAMP_AFTER)
    else:
        if HAS_BIAS:
            acc += tl.load(own_bias).to(tl.float32)[None, :]
        result = activate(acc, NAME, ALPHA)
    out = hidden + pairs.to(tl.int64)[:, None] * INNER + n[None, :]
    tl.store(out, rounded(result, hidden.dtype.element_ty), mask=live[:, None] & (n < INNER)[None, :])


@triton.jit(do_not_specialize=["tokens", "tiles"])
def rows_in_kernel(
    x, ids, order, offsets, tile_expert, route_weights, w, scale, zero, bias, tokens, tiles, stride_x, stride_expert,
    stride_row, stride_k, stride_scale, hidden, EXPERTS: tl.constexpr, K: tl.constexpr, K_WIDE: tl.constexpr, DEPTH:
    tl.constexpr, INNER: tl.constexpr, FEW: tl.constexpr, BEFORE: tl.constexpr, GATED: tl.constexpr, NAME: tl.constexpr,
    ALPHA: tl.constexpr, BETA: tl.constexpr, LIMIT: tl.constexpr, CLAMP_AFTER: tl.constexpr, HAS_BIAS: tl.constexpr,
    FORMAT: tl.constexpr, TURNED: tl.constexpr, GROUP: tl.constexpr, ROW_GROUP: tl.constexpr, WORDS: tl.constexpr,
    HAS_ZERO: tl.constexpr, LATE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """`hidden[pair] = activation(x[token] @ w[expert].T + bias[expert])`, `[pairs, INNER]` in hidden's dtype.

    Grid: tiles * ceil(INNER / BLOCK_N). x `[tokens, DEPTH]`; w `[EXPERTS, F*INNER, DEPTH]`, gate rows before up rows.
    BEFORE: rows are multiplied by their routing weight first.
    """
    tile, column = place_of(tl.program_id(0), tiles, (INNER + BLOCK_N - 1) // BLOCK_N, BAND)
    expert, pairs, live = find_tile(ids, order, offsets, tile_expert, tile, tokens, EXPERTS, K, K_WIDE, ROWS, FEW)
    if expert < 0:
        return
    rows_in_tile(
        expert, pairs, live, column, x, route_weights, w, scale, zero, bias, stride_x, stride_expert, stride_row,
        stride_k, stride_scale, hidden, K, DEPTH, INNER, BEFORE, GATED, NAME, ALPHA, BETA, LIMIT, CLAMP_AFTER, HAS_BIAS,
        FORMAT, TURNED, GROUP, ROW_GROUP, WORDS, HAS_ZERO, LATE, PRECISION, ROWS, BLOCK_N, BLOCK_K,
    )  # fmt: skip


@triton.jit
def rows_out_tile(
    expert, pairs, live, column, hidden, w, scale, zero, bias, stride_expert, stride_row, stride_k, stride_scale,
    result, INNER: tl.constexpr, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, FORMAT: tl.constexpr, TURNED:
    tl.constexpr, GROUP: tl.constexpr, ROW_GROUP: tl.constexpr, WORDS: tl.constexpr, HAS_ZERO: tl.constexpr, LATE:
    tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of `rows_out_kernel`."""
    e = expert.to(tl.int64)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    row, inside = rows_of(column, WIDTH, 1, BLOCK_N, TURNED)
    own = w + e * stride_expert
    own_scale = scale if FORMAT == "plain" else scale + e * stride_scale
    own_zero = zero + e * stride_scale if HAS_ZERO else zero
    given = hidden + pairs.to(tl.int64)[:, None] * INNER
    acc = tl.zeros((ROWS, BLOCK_N), tl.float32)
    for k0 in range(0, INNER, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)[None, :]
        if INNER % BLOCK_K == 0:
            a = tl.load(given + k)
        else:
            a = tl.load(given + k, mask=k < INNER, other=0.0)
        acc = times_weights(
            acc, a, own, own_scale, own_zero, row, inside, k0, stride_row, stride_k, WIDTH, INNER, BLOCK_K, WIDTH %
            BLOCK_N == 0, FORMAT, TURNED, GROUP, ROW_GROUP, WORDS, HAS_ZERO, LATE, PRECISION,
        )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias + e * WIDTH + tl.minimum(n, WIDTH - 1)).to(tl.float32)[None, :]
    out = result + pairs.to(tl.int64)[:, None] * WIDTH + n[None, :]
    tl.store(out, rounded(acc, result.dtype.element_ty), mask=live[:, None] & (n < WIDTH)[None, :])


@triton.jit(do_not_specialize=["tokens", "tiles"])
def rows_out_kernel(
    hidden, ids, order, offsets, tile_expert, w, scale, zero, bias, tokens, tiles, stride_expert, stride_row, stride_k,
    stride_scale, result, EXPERTS: tl.constexpr, K: tl.constexpr, K_WIDE: tl.constexpr, INNER: tl.constexpr, WIDTH:
    tl.constexpr, FEW: tl.constexpr, HAS_BIAS: tl.constexpr, FORMAT: tl.constexpr, TURNED: tl.constexpr, GROUP:
    tl.constexpr, ROW_GROUP: tl.constexpr, WORDS: tl.constexpr, HAS_ZERO: tl.constexpr, LATE: tl.constexpr, PRECISION:
    tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """`result[pair] = hidden[pair] @ w[expert].T + bias[expert]`, `[pairs, WIDTH]`. Grid: tiles * ceil(WIDTH /
    BLOCK_N)."""
    tile, column = place_of(tl.program_id(0), tiles, (WIDTH + BLOCK_N - 1) // BLOCK_N, BAND)
    expert, pairs, live = find_tile(ids, order, offsets, tile_expert, tile, tokens, EXPERTS, K, K_WIDE, ROWS, FEW)
    if expert < 0:
        return
    rows_out_tile(
        expert, pairs, live, column, hidden, w, scale, zero, bias, stride_expert, stride_row, stride_k, stride_scale,
        result, INNER, WIDTH, HAS_BIAS, FORMAT, TURNED, GROUP, ROW_GROUP, WORDS, HAS_ZERO, LATE, PRECISION, ROWS,
        BLOCK_N, BLOCK_K,
    )  # fmt: skip


@triton.jit
def combine_kernel(
    result, ids, route_weights, out, WIDTH: tl.constexpr, EXPERTS: tl.constexpr, K: tl.constexpr, K_WIDE: tl.constexpr,
    BEFORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`out[token]`, the sum of its K rows by their weights in float32 and in the order of k. Grid: (tokens, ceil(WIDTH
    / BLOCK)).

    A choice whose id is out of range adds nothing; one that repeats an earlier one reads that one's row.
    """
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.arange(0, K_WIDE)
    all_ids = tl.load(ids + token * K + slot, mask=slot < K, other=-1)
    acc = tl.zeros((BLOCK,), tl.float32)
    for k in range(K):
        own = tl.load(ids + token * K + k)
        first = tl.min(tl.where(all_ids == own, slot, K_WIDE))
        known = (own >= 0) & (own < EXPERTS)
        y = tl.load(result + (token * K + first) * WIDTH + n, mask=n < tl.where(known, WIDTH, 0), other=0.0).to(
            tl.float32
        )
        if not BEFORE:
            y *= tl.load(route_weights + token * K + k).to(tl.float32)
        acc += tl.where(known, y, 0.0)
    tl.store(out + token * WIDTH + n, rounded(acc, out.dtype.element_ty), mask=n < WIDTH)
