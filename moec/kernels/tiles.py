"""How large the pieces are that the work is cut into: a small table by SM, kind of weights and tokens an expert."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

FEW_TOKENS = 16  # up to here a tile's rows are the tokens themselves, and nothing has to be sorted
_TABLE = Path(__file__).with_name("tiles.toml")


@dataclass(frozen=True)
class Tile:
    """Sizes of a piece of work.

    Attributes:
        rows: tokens of one expert, BLOCK_M.
        columns: rows of the weights read at a time; a gated first product has half of them gates, half ups.
        depth: how far one step goes along the inner dimension.
        band: how many tiles in turn read the same weights.
        warps, stages: Triton's num_warps and num_stages.
        resident: programs a multiprocessor that stay and take piece after piece (`moec.kernels.device.persistent`); 0: a program a piece.
    """

    rows: int
    columns: int
    depth: int
    band: int = 1
    warps: int = 4
    stages: int = 3
    resident: int = 0

    def options(self, gated: bool = False) -> dict[str, int]:
        """Keyword arguments of a launch."""
        columns = self.columns // 2 if gated else self.columns
        return {"ROWS": self.rows, "BLOCK_N": columns, "BLOCK_K": self.depth, "BAND": self.band, "num_warps": self.warps, "num_stages": self.stages}


@lru_cache(None)
def table() -> dict[tuple[int, str, int], Tile]:
    """(least SM, kind, rows) -> tile, as `tiles.toml` has it."""
    lines = tomllib.loads(_TABLE.read_text())["tiles"]
    return {(sm, kind, rows): Tile(rows, *rest) for sm, kind, rows, *rest in lines}


def rows_for(tokens: int, top_k: int, experts: int) -> int:
    """How many rows a tile has: about as many as an expert has tokens when all are chosen alike."""
    if tokens <= FEW_TOKENS:
        return FEW_TOKENS
    each = tokens * top_k / experts
    return next((rows for rows in (16, 32, 64) if each <= rows), 128)


@lru_cache(None)
def tile_for(sm: int, kind: str, rows: int, group: int = 0) -> Tile:
    """The table's choice.

    Args:
        sm: compute capability, 90 for 9.0. kind: `half`, `single` or `packed`. rows: see `rows_for`.
        group: of packed weights; a step doesn't go beyond one group where that is possible.
    """
    least = max((s for s, k, r in table() if (k, r) == (kind, rows) and s <= max(sm, 80)), default=80)
    tile = table()[least, kind, rows]
    if 32 <= group < tile.depth and group & (group - 1) == 0:
        return replace(tile, depth=group)
    return tile
