"""The table of tiles: every device and every kind of weights finds one that is of its own making."""

from __future__ import annotations

import pytest

from moec.kernels.tiles import FEW_TOKENS, Tile, rows_for, table, tile_for


@pytest.mark.parametrize("kind", ["half", "single", "packed"])
@pytest.mark.parametrize("sm", [75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121])
def test_every_device_has_a_tile(sm: int, kind: str) -> None:
    for rows in (16, 32, 64, 128):
        tile = tile_for(sm, kind, rows)
        assert tile.rows == rows and all(n & (n - 1) == 0 for n in (tile.columns, tile.depth, tile.warps))
        assert tile.columns >= 32 and tile.depth >= 32  # halves of both remain what a matrix unit takes


def test_the_nearest_line_below_is_taken() -> None:
    assert tile_for(89, "half", 128) == table()[86, "half", 128] != tile_for(90, "half", 128)
    assert tile_for(103, "half", 128) == table()[90, "half", 128]


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "rows"), [(1, 8, 128, 16), (FEW_TOKENS, 2, 8, 16), (64, 8, 128, 16), (64, 2, 8, 16), (256, 2, 8, 64), (4096, 2, 8, 128)]
)
def test_rows_follow_the_tokens_of_an_expert(tokens: int, top_k: int, experts: int, rows: int) -> None:
    assert rows_for(tokens, top_k, experts) == rows


def test_a_step_stays_in_one_group_of_scales() -> None:
    whole = tile_for(90, "packed", 16)
    assert tile_for(90, "packed", 16, 64).depth == 64 < whole.depth == tile_for(90, "packed", 16, 128).depth
    assert tile_for(90, "packed", 16, 48) == tile_for(90, "packed", 16, 16) == whole  # not to be had


def test_a_gated_product_has_two_halves() -> None:
    tile = Tile(16, 64, 128, 2, 8, 4)
    assert tile.options(gated=True) == {**tile.options(), "BLOCK_N": 32}
    assert tile.options() == {"ROWS": 16, "BLOCK_N": 64, "BLOCK_K": 128, "BAND": 2, "num_warps": 8, "num_stages": 4}
