"""Which tile works on which tokens: the routed pairs sorted by expert, and the experts cut into tiles.

A pair is one of a token's K choices; pair p belongs to token p // K. Tiles have a number that needs no other expert's
count: the tiles of expert e, whose pairs begin at offset b, are number b // ROWS + e and the following, which never
meets the next expert's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["pairs", "tiles"])
def align_kernel(
    ids, pairs, tiles, order, offsets, tile_expert, EXPERTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid: experts. Each scans all ids by itself, so that one launch without atomics gives a stable order.

    ids `[pairs]`; order `[pairs]` int32, pairs by expert; offsets `[EXPERTS + 1]` int32 into it; tile_expert `[tiles]`
    int32, -1 where a tile has no work. Ids outside of [0, EXPERTS) are in no expert's range. tiles is pairs // ROWS +
    EXPERTS.
    """
    expert = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    lower, equal = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    start = 0
    while start < pairs:
        e = tl.load(ids + start + lane, mask=start + lane < pairs, other=-1)
        lower += ((e >= 0) & (e < expert)).to(tl.int32)
        equal += (e == expert).to(tl.int32)
        start += BLOCK
    begin, count = tl.sum(lower), tl.sum(equal)
    end = begin + count
    tl.store(offsets + expert, begin)
    if expert == EXPERTS - 1:
        tl.store(offsets + EXPERTS, end)

    place = begin
    if count > 0:
        start = 0
        while start < pairs:
            own = (tl.load(ids + start + lane, mask=start + lane < pairs, other=-1) == expert).to(tl.int32)
            tl.store(order + place + tl.cumsum(own, 0) - own, start + lane, mask=own > 0)
            place += tl.sum(own)
            start += BLOCK

    first, stop = begin // ROWS + expert, end // ROWS + expert + 1
    if expert == EXPERTS - 1:
        stop = tiles
    busy = first + tl.cdiv(count, ROWS)
    while first < stop:
        tile = first + lane
        tl.store(tile_expert + tile, tl.where(tile < busy, expert, -1), mask=tile < stop)
        first += BLOCK


@triton.jit
def sorted_tile(ids_or_tiles, order, offsets, tile, ROWS: tl.constexpr):
    """Expert (-1 for none), pairs `[ROWS]` and which of them are real, of one tile of `align_kernel`."""
    expert = tl.load(ids_or_tiles + tile)
    e = tl.maximum(expert, 0)
    begin, end = tl.load(offsets + e), tl.load(offsets + e + 1)
    row = begin + (tile - begin // ROWS - e) * ROWS + tl.arange(0, ROWS)
    live = row < tl.where(expert >= 0, end, 0)
    # rows beyond the end repeat one that is there: loads stay inside and nothing foreign is read
    pairs = tl.load(order + tl.maximum(tl.minimum(row, end - 1), 0))
    return expert, pairs, live


@triton.jit
def token_tile(ids, pair, tokens, EXPERTS: tl.constexpr, K: tl.constexpr, K_WIDE: tl.constexpr, ROWS: tl.constexpr):
    """The same for few tokens (at most ROWS), without an order: row r of the tile is token r, `pair` leads it.

    The leader of an expert is the first pair that chose it; the tiles of all others, and of ids that are out of range,
    have expert -1.
    """
    token, k = tl.arange(0, ROWS)[:, None], tl.arange(0, K_WIDE)[None, :]
    everyone = tl.load(ids + token * K + k, mask=(token < tokens) & (k < K), other=-1)
    own = tl.load(ids + pair)
    same = everyone == own
    leader = tl.min(tl.where(same, token * K + k, ROWS * K))
    first = tl.min(tl.where(same, k, K_WIDE), axis=1)
    pairs = tl.where(first < K_WIDE, tl.arange(0, ROWS) * K + first, pair)
    expert = tl.where((leader == pair) & (own >= 0) & (own < EXPERTS), own, -1).to(tl.int32)
    return expert, pairs, tl.where(expert >= 0, first, K_WIDE) < K_WIDE
