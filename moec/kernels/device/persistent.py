"""The grouped products as persistent kernels: as many programs as the GPU holds, each of which takes piece after piece.

`moec.kernels.device.grouped_gemm` starts a program for each piece of work, and the hardware hands them out. Here
program p does pieces p, p + programs, p + 2 * programs, …: no counter, no atomics, and the same bits, for what a piece
computes is the same function. Pieces that have no work are skipped, where otherwise a program would start and end.
Parameters are those of the other kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moec.kernels.device.grouped_gemm import find_tile, place_of, rows_in_tile, rows_out_tile


@triton.jit(do_not_specialize=["tokens", "tiles"])
def rows_in_persistent_kernel(
    x, ids, order, offsets, tile_expert, route_weights, w, scale, zero, bias, tokens, tiles, stride_x, stride_expert,
    stride_row, stride_k, stride_scale, hidden, EXPERTS: tl.constexpr, K: tl.constexpr, K_WIDE: tl.constexpr, DEPTH:
    tl.constexpr, INNER: tl.constexpr, FEW: tl.constexpr, BEFORE: tl.constexpr, GATED: tl.constexpr, NAME: tl.constexpr,
    ALPHA: tl.constexpr, BETA: tl.constexpr, LIMIT: tl.constexpr, CLAMP_AFTER: tl.constexpr, HAS_BIAS: tl.constexpr,
    FORMAT: tl.constexpr, TURNED: tl.constexpr, GROUP: tl.constexpr, ROW_GROUP: tl.constexpr, WORDS: tl.constexpr,
    HAS_ZERO: tl.constexpr, LATE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """`rows_in_kernel` with any number of programs. Grid: programs."""
    COLUMNS: tl.constexpr = (INNER + BLOCK_N - 1) // BLOCK_N
    piece = tl.program_id(0)
    while piece < tiles * COLUMNS:
        tile, column = place_of(piece, tiles, COLUMNS, BAND)
        expert, pairs, live = find_tile(ids, order, offsets, tile_expert, tile, tokens, EXPERTS, K, K_WIDE, ROWS, FEW)
        if expert >= 0:
            rows_in_tile(
                expert, pairs, live, column, x, route_weights, w, scale, zero, bias, stride_x, stride_expert,
                stride_row, stride_k, stride_scale, hidden, K, DEPTH, INNER, BEFORE, GATED, NAME, ALPHA, BETA, LIMIT,
                CLAMP_AFTER, HAS_BIAS, FORMAT, TURNED, GROUP, ROW_GROUP, WORDS, HAS_ZERO, LATE, PRECISION, ROWS,
                BLOCK_N, BLOCK_K,
            )  # fmt: skip
        piece += tl.num_programs(0)


@triton.jit(do_not_specialize=["tokens", "tiles"])
def rows_out_persistent_kernel(
    hidden, ids, order, offsets, tile_expert, w, scale, zero, bias, tokens, tiles, stride_expert, stride_row, stride_k,
    stride_scale, result, EXPERTS: tl.constexpr, K: tl.constexpr, K_WIDE: tl.constexpr, INNER: tl.constexpr, WIDTH:
    tl.constexpr, FEW: tl.constexpr, HAS_BIAS: tl.constexpr, FORMAT: tl.constexpr, TURNED: tl.constexpr, GROUP:
    tl.constexpr, ROW_GROUP: tl.constexpr, WORDS: tl.constexpr, HAS_ZERO: tl.constexpr, LATE: tl.constexpr, PRECISION:
    tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """`rows_out_kernel` with any number of programs. Grid: programs."""
    COLUMNS: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    piece = tl.program_id(0)
    while piece < tiles * COLUMNS:
        tile, column = place_of(piece, tiles, COLUMNS, BAND)
        expert, pairs, live = find_tile(ids, order, offsets, tile_expert, tile, tokens, EXPERTS, K, K_WIDE, ROWS, FEW)
        if expert >= 0:
            rows_out_tile(
                expert, pairs, live, column, hidden, w, scale, zero, bias, stride_expert, stride_row, stride_k,
                stride_scale, result, INNER, WIDTH, HAS_BIAS, FORMAT, TURNED, GROUP, ROW_GROUP, WORDS, HAS_ZERO, LATE,
                PRECISION, ROWS, BLOCK_N, BLOCK_K,
            )  # fmt: skip
        piece += tl.num_programs(0)
