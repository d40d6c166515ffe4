"""How large the pieces are that the work is cut into: a small table by SM, kind of weights and tokens an expert.

The table is `tiles.toml` beside this file. Lines of the file that the environment variable MOEC_TILES names, as
`moec.kernels.tuning` writes them, come before it; nothing is measured unless it is asked for.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path

from moec.errors import MoecError

Key = tuple[int, str, int]  # least SM, kind of weights, rows
KINDS, ROWS = ("half", "single", "packed"), (16, 32, 64, 128)
VARIABLE = "MOEC_TILES"
ORIGINS = ("derived", "measured")  # from `moec.kernels.occupancy`, or by `moec.kernels.tuning`
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
        resident: programs a multiprocessor of a persistent kernel (`moec.kernels.device.persistent`); 0: a program a
            piece, which ends with it.
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
        return {
            "ROWS": self.rows,
            "BLOCK_N": columns,
            "BLOCK_K": self.depth,
            "BAND": self.band,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }

    def within(self, group: int) -> Tile:
        """The tile whose steps don't go beyond one group of a packed matrix's scales, where that is possible."""
        return replace(self, depth=group) if 32 <= group < self.depth and group & (group - 1) == 0 else self


@lru_cache(None)
def table() -> dict[Key, Tile]:
    """(least SM, kind, rows) -> tile: `tiles.toml`, and over it what `MOEC_TILES` names. Raises M201 for a file that is
    no table."""
    own = os.environ.get(VARIABLE)
    return {**read(_TABLE), **(read(Path(own)) if own else {})}


def read(path: Path) -> dict[Key, Tile]:
    """The lines of one file: lists of least SM, kind, rows, columns, depth, band, warps, stages, and perhaps resident.
    A file may
    say its `origin`, `derived` or `measured`. Raises M201."""
    try:
        given = tomllib.loads(path.read_text())
        lines = given["tiles"]
        if given.get("origin", ORIGINS[0]) not in ORIGINS:
            raise ValueError(f"origin is {given['origin']!r}, not {' or '.join(ORIGINS)}")
        found = {(sm, kind, rows): Tile(rows, *rest) for sm, kind, rows, *rest in lines}
    except (OSError, ValueError, TypeError, KeyError) as error:
        fix = f"let benchmarks/moe_gpu.py --tune FILE write it, or unset {VARIABLE}"
        raise MoecError("M201", f"not a table of tiles: {error!r}", str(path), fix) from error
    for key, tile in found.items():
        _check(key, tile, path)
    return found


def _check(key: Key, tile: Tile, path: Path) -> None:
    sizes = (tile.columns, tile.depth, tile.warps)
    whole = isinstance(key[0], int) and all(type(n) is int for n in astuple(tile))
    if not (
        whole
        and key[1] in KINDS
        and tile.rows in ROWS
        and min(*sizes[:2]) >= 32
        and min(tile.band, tile.warps, tile.stages) > 0 <= tile.resident
    ):
        raise MoecError(
            "M201",
            f"{key} cannot have {tile}",
            str(path),
            f"kinds are {', '.join(KINDS)}, rows {ROWS}, columns and depth 32 at least",
        )
    if any(n & (n - 1) for n in sizes):
        raise MoecError("M201", f"{key} has {tile}", str(path), "give columns, depth and warps that are powers of two")


def written(tiles: Mapping[Key, Tile], origin: str = "measured") -> str:
    """TOML that `read` reads back."""
    lines = [
        f'    [{sm}, "{kind}", {", ".join(str(n) for n in astuple(tile))}],'
        for (sm, kind, _), tile in sorted(tiles.items())
    ]
    return "\n".join(
        [
            f'origin = "{origin}"',
            "# least SM, kind, rows of a tile, columns, depth, band, warps, stages, resident",
            "tiles = [",
            *lines,
            "]",
            "",
        ]
    )


def adopt(tiles: Mapping[Key, Tile]) -> None:
    """Let these lines come before the table's, from now on and in this process."""
    table().update(tiles)
    tile_for.cache_clear()


def rows_for(tokens: int, top_k: int, experts: int) -> int:
    """How many rows a tile has: about as many as an expert has tokens when all are chosen alike."""
    if tokens <= FEW_TOKENS:
        return FEW_TOKENS
    each = tokens * top_k / experts
    return next((rows for rows in ROWS[:-1] if each <= rows), ROWS[-1])


@lru_cache(None)
def tile_for(sm: int, kind: str, rows: int, group: int = 0) -> Tile:
    """The table's choice.

    Args:
        sm: compute capability, 90 for 9.0. kind: `half`, `single` or `packed`. rows: see `rows_for`.
        group: of packed weights; a step doesn't go beyond one group where that is possible.
    """
    least = max((s for s, k, r in table() if (k, r) == (kind, rows) and s <= max(sm, 80)), default=80)
    return table()[least, kind, rows].within(group)
