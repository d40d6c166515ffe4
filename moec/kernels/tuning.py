"""Which tile is the fastest, measured on the GPU that is there; only on request.

From the table's tile one size after the other is varied, and what is faster stays. Before anything is measured, tiles
are left out that cannot fit; what doesn't start, or computes something else, loses. The result are lines for
`tiles.toml`, or for the file that the environment variable MOEC_TILES names.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

from moec.dialect import Activation
from moec.errors import MoecError
from moec.kernels import launch
from moec.kernels.ahead import SHARED_LIMIT_BYTES
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import capability
from moec.kernels.tiles import FEW_TOKENS, ROWS, Key, Tile, rows_for, tile_for

SIZES: dict[str, tuple[int, ...]] = {
    "columns": (32, 64, 128, 256),
    "depth": (32, 64, 128),
    "stages": (2, 3, 4, 5),
    "warps": (4, 8),
    "resident": (0, 1, 2),
    "band": (1, 2, 4, 8),
}
GAIN = 0.01  # a tile must be faster by this much: less is noise
_BYTES = {"half": 2.0, "single": 4.0, "packed": 0.5}
_ACCUMULATORS = 128  # registers of a thread; the rest of the 255 are addresses and operands

Clock = Callable[[Callable[[], Any]], float]
Cost = Callable[[Tile], float]


@dataclass(frozen=True)
class BlockExperts:
    """One block's experts as `launch.experts` takes them, and how many of them a token goes to."""

    w_in: Tensor | ExpertCodes
    w_out: Tensor | ExpertCodes
    b_in: Tensor | None
    b_out: Tensor | None
    rule: Activation
    top_k: int
    dtype: torch.dtype

    @property
    def kind(self) -> str:
        """The table's word for its weights."""
        return "packed" if isinstance(self.w_in, ExpertCodes) else "single" if self.dtype == torch.float32 else "half"

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return (self.w_in if isinstance(self.w_in, Tensor) else self.w_in.values).device

    def tokens(self, rows: int) -> list[int]:
        """How many tokens are tried for tiles of so many rows: one and a few for the least, two tiles an expert for the
        largest."""
        experts = self.w_in.shape[0]
        if rows == ROWS[0]:
            return [1, FEW_TOKENS]
        return [max(int((2 if rows == ROWS[-1] else 1) * rows * experts / self.top_k), FEW_TOKENS + 1)]

    def calls(self, rows: int) -> list[Callable[[Tile], Tensor]]:
        """The block on random tokens with any tile, for each number of tokens."""
        return [
            self._call(tokens)
            for tokens in self.tokens(rows)
            if rows_for(tokens, self.top_k, self.w_in.shape[0]) == rows
        ]

    def _call(self, tokens: int) -> Callable[[Tile], Tensor]:
        generator = torch.Generator(self.device).manual_seed(tokens)
        x = torch.randn(tokens, self.w_in.shape[2], generator=generator, device=self.device).to(self.dtype)
        weights, ids = torch.rand(tokens, self.w_in.shape[0], generator=generator, device=self.device).topk(self.top_k)
        group = self.w_in.group if isinstance(self.w_in, ExpertCodes) else 0
        given = x, ids, weights, self.w_in, self.w_out, self.b_in, self.b_out
        return lambda tile: launch.experts(*given, rule=self.rule, tile=tile.within(group))


def shared_bytes(tile: Tile, kind: str) -> int:
    """The least shared memory that a program needs: tokens and weights of all steps but one that are under way."""
    tokens = tile.rows * (4 if kind == "single" else 2)
    return int((tile.stages - 1) * tile.depth * (tokens + tile.columns * _BYTES[kind]))


def fits(tile: Tile, kind: str, sm: int) -> bool:
    """Whether a program's shared memory and a thread's sums can be had; what the compiler adds to them shows when the
    tile is tried."""
    limit = SHARED_LIMIT_BYTES[max(s for s in SHARED_LIMIT_BYTES if s <= max(sm, 80))]
    in_registers = not 100 <= sm < 120 or kind == "single"  # elsewhere on these, sums have a memory of their own
    sums = tile.rows * tile.columns / (32 * tile.warps)
    return shared_bytes(tile, kind) <= limit and (not in_registers or sums <= _ACCUMULATORS)


def candidates(sm: int, kind: str, rows: int) -> list[Tile]:
    """Every tile of `rows` rows that may fit."""
    every = (Tile(rows, **dict(zip(SIZES, sizes, strict=True))) for sizes in product(*SIZES.values()))
    return [tile for tile in every if fits(tile, kind, sm)]


def choose(first: Tile, among: Iterable[Tile], cost: Cost, end: float = math.inf) -> tuple[Tile, dict[Tile, float]]:
    """The best tile on the way from `first`, and what was measured: one size at a time, over all of them until none
    changes.

    Args:
        first: a tile that works. among: where the others may be taken from.
        cost: time of a tile; infinity where it cannot be used. Question once a tile.
        end: `time.monotonic()` after which no other tile is tried.
    """
    known, best, allowed = {first: cost(first)}, first, set(among)
    while True:
        before = best
        for name, values in SIZES.items():
            for tile in (replace(best, **{name: value}) for value in values):
                if tile in allowed and tile not in known and time.monotonic() < end:
                    known[tile] = cost(tile)
            line = [replace(best, **{name: value}) for value in values]
            fastest = min((t for t in line if t in known), key=lambda t: known[t], default=best)
            best = fastest if known[fastest] < (1 - GAIN) * known[best] else best
        if best == before:
            return best, known


def relative(calls: Sequence[Callable[[Tile], Tensor]], first: Tile, clock: Clock) -> Cost:
    """The geometric mean over calls of a tile's time in units of the first's; infinity where it doesn't run or computes
    something else."""
    wanted, units = [call(first) for call in calls], [clock(partial(call, first)) for call in calls]

    def cost(tile: Tile) -> float:
        if tile == first:
            return 1.0
        try:
            if not all(_same(call(tile), want) for call, want in zip(calls, wanted, strict=True)):
                return math.inf
            times = [clock(partial(call, tile)) / unit for call, unit in zip(calls, units, strict=True)]
        except MoecError:
            raise
        except Exception:  # the compiler's and the driver's, of many kinds: too many registers, too much shared memory
            return math.inf
        return math.prod(times) ** (1 / len(times))

    return cost


def _same(got: Tensor, wanted: Tensor) -> bool:
    """Up to the order of the sums."""
    limit = 1e-4 if got.dtype == torch.float32 else 2e-2
    return bool((got.double() - wanted.double()).norm() <= limit * wanted.double().norm())


def tune(
    blocks: Sequence[BlockExperts],
    *,
    seconds: float = 120.0,
    rows: Sequence[int] = ROWS,
    clock: Clock | None = None,
    tell: Callable[[str], None] = print,
) -> dict[Key, Tile]:
    """Measure tiles on the device that the blocks are on, and return the lines of those that are faster than the
    table's.

    Args:
        blocks: experts; those of one kind share their lines.
        seconds: after which no other tile is tried, shared out among the lines. rows: which lines.
        clock: milliseconds of a call; by default events on CUDA with the L2 cache overwritten, elsewhere (in the
            interpreter) the clock on the wall.
        tell: gets a sentence a line.
    """
    end, found = time.monotonic() + seconds, {}
    lines = [(kind, count) for kind in dict.fromkeys(b.kind for b in blocks) for count in rows]
    for n, (kind, count) in enumerate(lines):
        share = time.monotonic() + (end - time.monotonic()) / (len(lines) - n)
        own = [block for block in blocks if block.kind == kind]
        sm = capability(own[0].device)
        calls = [call for block in own for call in block.calls(count)] if time.monotonic() < end else []
        if not calls:
            tell(f"sm_{sm} {kind} {count}: not measured")
            continue
        first = tile_for(sm, kind, count)
        best, known = choose(
            first, candidates(sm, kind, count), relative(calls, first, clock or clock_of(own[0].device)), share
        )
        tell(f"sm_{sm} {kind} {count}: {len(known)} tiles tried, {best} takes {known[best]:.2f} of the table's time")
        if best != first:
            found[sm, kind, count] = best
    return found


def clock_of(device: torch.device) -> Clock:
    """Median milliseconds of a call: between events with the L2 cache overwritten on CUDA, elsewhere one call on the
    wall's clock."""
    if device.type != "cuda":
        return _wall_ms
    flusher = torch.empty(2**28, dtype=torch.uint8, device=device)
    return lambda call: _event_ms(call, flusher)


def _wall_ms(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _event_ms(call: Callable[[], Any], flusher: Tensor, runs: int = 15) -> float:
    event: Callable[..., Any] = torch.cuda.Event
    pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(runs)]
    for start, end in pairs:
        flusher.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize(flusher.device)
    return median(start.elapsed_time(end) for start, end in pairs)
