"""Which tile works on which tokens: the routed pairs sorted by expert, and the experts cut into tiles.

A pair is one of a token's K choices; pair p belongs to token p // K. Tiles have a number that needs no other expert's
count: the tiles of expert e, whose pairs begin at offset b, are number b // ROWS + e and the following, which never
meets the next expert's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["pairs"])
def count_kernel(ids, pairs, counts, EXPERTS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Grid: pairs // BLOCK + 1. `counts[block, e]` int32 is how many pairs of a block chose expert e.

    The histogram counts in shared memory, in whatever order: sums of integers don't show it. WIDE is the least power of
    two that is not below EXPERTS.
    """
    block = tl.program_id(0)
    pair = block * BLOCK + tl.arange(0, BLOCK)
    e = tl.load(ids + pair, mask=pair < pairs, other=-1)
    known = (e >= 0) & (e < EXPERTS)
    found = tl.histogram(tl.where(known, e, 0).to(tl.int32), WIDE, mask=known)
    expert = tl.arange(0, WIDE)
    tl.store(counts + block * EXPERTS + expert, found, mask=expert < EXPERTS)


@triton.jit
def begin_and_count(counts, blocks, expert, EXPERTS: tl.constexpr, WIDE: tl.constexpr):
    """Where an expert's pairs begin in the order, and how many there are, from what `count_kernel` counted."""
    SPAN: tl.constexpr = 16
    lower, equal = tl.zeros((SPAN, WIDE), tl.int32), tl.zeros((SPAN, WIDE), tl.int32)
    other = tl.arange(0, WIDE)[None, :]
    for first in range(0, blocks, SPAN):
        block = first + tl.arange(0, SPAN)[:, None]
        found = tl.load(counts + block * EXPERTS + other, mask=(block < blocks) & (other < EXPERTS), other=0)
        lower += tl.where(other < expert, found, 0)
        equal += tl.where(other == expert, found, 0)
    return tl.sum(tl.sum(lower, 1), 0), tl.sum(tl.sum(equal, 1), 0)


@triton.jit(do_not_specialize=["pairs", "tiles"])
def align_kernel(
    ids, counts, pairs, tiles, order, offsets, tile_expert, EXPERTS: tl.constexpr, WIDE: tl.constexpr, ROWS:
    tl.constexpr, BLOCK: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """Grid: experts. Each looks for its pairs by itself, so that there is a stable order without atomics.

    ids `[pairs]`; order `[pairs]` int32, pairs by expert; offsets `[EXPERTS + 1]` int32 into it; tile_expert `[tiles]`
    int32, -1 where a tile has no work. Ids outside of [0, EXPERTS) are in no expert's range. tiles is pairs // ROWS +
    EXPERTS. ALONE: fewer pairs than BLOCK, which are read once, and counted here; otherwise counts `[pairs // BLOCK +
    1, EXPERTS]` are `count_kernel`'s, and the ids are read once more, ahead of their use.
    """
    expert = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    if ALONE:
        e = tl.load(ids + lane, mask=lane < pairs, other=-1)
        own = (e == expert).to(tl.int32)
        begin, count = tl.sum(((e >= 0) & (e < expert)).to(tl.int32)), tl.sum(own)
        tl.store(order + begin + tl.cumsum(own, 0) - own, lane, mask=own > 0)
    else:
        begin, count = begin_and_count(counts, pairs // BLOCK + 1, expert, EXPERTS, WIDE)
        place = begin
        if count > 0:
            for start in tl.range(0, pairs, BLOCK, num_stages=4):
                e = tl.load(ids + start + lane, mask=start + lane < pairs, other=-1)
                own = (e == expert).to(tl.int32)
                tl.store(order + place + tl.cumsum(own, 0) - own, start + lane, mask=own > 0)
                place += tl.sum(own)
    end = begin + count
    tl.store(offsets + expert, begin)
    if expert == EXPERTS - 1:
        tl.store(offsets + EXPERTS, end)

    first, stop = begin // ROWS + expert, end // ROWS + expert + 1
    if expert == EXPERTS - 1:
        stop = tiles
    busy = first + tl.cdiv(count, ROWS)
    for start in range(first, stop, BLOCK):
        tile = start + lane
        tl.store(tile_expert + tile, tl.where(tile < busy, expert, -1), mask=tile < stop)


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
