"""The table of tiles: every device and every kind of weights finds one that is of its own making."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.kernels import tiles
from moec.kernels.tiles import FEW_TOKENS, VARIABLE, Tile, adopt, read, rows_for, table, tile_for, written


@pytest.fixture
def afresh() -> Iterator[None]:
    """Whatever the test makes of the table, the next one reads it anew."""
    yield
    table.cache_clear()
    tile_for.cache_clear()


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
    ("tokens", "top_k", "experts", "rows"),
    [(1, 8, 128, 16), (FEW_TOKENS, 2, 8, 16), (64, 8, 128, 16), (64, 2, 8, 16), (256, 2, 8, 64), (4096, 2, 8, 128)],
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


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    lines = {(90, "half", 128): Tile(128, 256, 64, 8, 8, 4, 2), (89, "packed", 16): Tile(16, 32, 32)}
    (tmp_path / "tiles.toml").write_text(written(lines))
    assert read(tmp_path / "tiles.toml") == lines and written(read(tmp_path / "tiles.toml")) == written(lines)


@pytest.mark.usefixtures("afresh")
def test_a_file_of_one_s_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed, own = tile_for(90, "half", 128), Tile(128, 64, 32, 2, 4, 2, 1)
    (tmp_path / "own.toml").write_text(written({(90, "half", 128): own}))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own.toml"))
    table.cache_clear()
    tile_for.cache_clear()
    assert tile_for(90, "half", 128) == tile_for(103, "half", 128) == own != committed
    assert tile_for(90, "half", 64) == table()[90, "half", 64] and tile_for(89, "half", 128) == table()[86, "half", 128]


@pytest.mark.usefixtures("afresh")
def test_what_is_adopted_comes_first() -> None:
    before, own = tile_for(89, "packed", 32), Tile(32, 32, 32)
    adopt({(89, "packed", 32): own})
    assert tile_for(89, "packed", 32) == own != before == tile_for(86, "packed", 32)


WRONG = {
    "no origin that is known": 'origin = "guessed"\ntiles = [[80, "half", 16, 64, 128, 1, 4, 4]]',
    "nothing": None,
    "no TOML": "tiles = [",
    "no tiles": "rows = 3",
    "a short line": 'tiles = [[80, "half"]]',
    "a long line": 'tiles = [[80, "half", 16, 64, 128, 1, 4, 4, 0, 7]]',
    "another kind": 'tiles = [[80, "quarter", 16, 64, 128, 1, 4, 4]]',
    "other rows": 'tiles = [[80, "half", 24, 64, 128, 1, 4, 4]]',
    "text": 'tiles = [[80, "half", 16, "64", 128, 1, 4, 4]]',
    "narrow": 'tiles = [[80, "half", 16, 16, 128, 1, 4, 4]]',
    "not a power of two": 'tiles = [[80, "half", 16, 96, 128, 1, 4, 4]]',
    "no stages": 'tiles = [[80, "half", 16, 64, 128, 1, 4, 0]]',
    "less than no program": 'tiles = [[80, "half", 16, 64, 128, 1, 4, 4, -1]]',
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tiles.toml"
    if (text := WRONG[name]) is not None:
        path.write_text(text)
    with pytest.raises(MoecError) as caught:
        read(path)
    assert caught.value.code == "M201" and str(path) in caught.value.where


def test_nothing_stays_unless_it_was_measured() -> None:
    """No figure has been taken on a GPU: the committed table starts a program a piece, and says that it is derived."""
    assert tomllib.loads(Path(tiles.__file__).with_name("tiles.toml").read_text())["origin"] == "derived"
    assert 'origin = "measured"' in written({})
    assert all(tile.resident == 0 for tile in table().values())
