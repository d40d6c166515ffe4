"""The model of a tile's time, held against times that others measured on an H200, and against the compiler."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from moec.kernels.ahead import Compiled
from moec.kernels.occupancy import (
    DEVICES,
    KNOWN,
    REGISTERS,
    RESERVED_BYTES,
    TOKENS,
    Device,
    cost,
    derive,
    estimate,
    product,
    registers,
    resident,
    shared_bytes,
)
from moec.kernels.tiles import ROWS, Tile, rows_for, tile_for
from moec.kernels.tuning import candidates
from tests.kernels.conftest import Interpret
from tests.kernels.device.test_grouped_gemm import built

H200 = DEVICES["H200"]
# microseconds of the best of vLLM, TensorRT-LLM and SGLang for 16-bit experts on one H200, for the tokens of `TOKENS`
# (aiconfigurator-core 0.12.0, PyPI, Apache-2.0: systems/data/h200_sxm/moe)
PUBLISHED_US = {
    "Mixtral-8x7B": (188, 297, 364, 649, 659, 671, 751, 1001, 1778, 3595, 7381),
    "Qwen3-30B-A3B": (36, 52, 83, 118, 150, 287, 323, 389, 436, 660, 1224),
    "DeepSeek-V3": (187, 339, 643, 1262, 1689, 3774, 4649, 6067, 6428, 6927, 13079),
}


def ratios(device: Device) -> list[float]:
    """The model's time of every published cell, in units of the published one."""
    found = []
    for name, times in PUBLISHED_US.items():
        sizes = KNOWN[name]
        for tokens, published in zip(TOKENS, times, strict=True):
            tile = tile_for(90, "half", rows_for(tokens, sizes.top_k, sizes.experts))
            found.append(estimate(sizes, tokens, tile, "half", device) * 1e6 / published)
    return found


def test_it_is_near_what_others_measured() -> None:
    """Our tiles by the model, and the best of three libraries by a clock: no cell is as much as half as long again."""
    assert len(ratios(H200)) == 33 and all(0.6 < ratio < 1.3 for ratio in ratios(H200))
    assert 0.9 < math.prod(ratios(H200)) ** (1 / 33) < 1.1


@pytest.mark.parametrize("name", ["bandwidth", "rate"])
def test_a_device_half_as_fast_is_not(name: str) -> None:
    slow = replace(H200, **{name: getattr(H200, name) / 2})
    assert max(ratios(slow)) > 1.6


@pytest.mark.parametrize("case", ["one token", "many tokens, int4"])
def test_it_is_near_what_the_compiler_says(compiler: Interpret, case: str) -> None:
    (kernel,) = compiler(built, case, 90, None, "rows_out")
    kind, rows = "packed" if "int4" in case else "half", 128 if "many" in case else 16
    tile = tile_for(90, kind, rows, 128 if kind == "packed" else 0)
    assert 0.75 < shared_bytes(tile, kind) / kernel.shared_bytes < 1.4
    assert abs(registers(tile, kind) - kernel.registers) < 40
    assert abs(resident(tile, kind, H200) - held(kernel)) <= 1


def held(kernel: Compiled) -> int:
    """Programs on one multiprocessor of an H200, from what was compiled."""
    threads = 32 * kernel.warps
    by_shared = H200.shared_bytes // (kernel.shared_bytes + RESERVED_BYTES)
    return min(REGISTERS // (-(-kernel.registers // 8) * 8 * threads), by_shared, H200.warps // kernel.warps)


@pytest.mark.parametrize(
    ("tile", "kind", "tokens", "bound"),
    [
        (Tile(16, 64, 128, 1, 4, 4), "half", 1, "bandwidth"),
        (Tile(16, 64, 128, 1, 4, 4), "packed", 1, "unpacking"),
        (Tile(128, 256, 64, 8, 8, 4), "half", 8192, "matrix"),
        (Tile(128, 32, 64, 8, 4, 4), "half", 8192, "cache"),
    ],
)
def test_every_bound_is_reached(tile: Tile, kind: str, tokens: int, bound: str) -> None:
    assert product(KNOWN["Mixtral-8x7B"], tokens, tile, kind, H200, first=True).bound == bound


def test_few_bytes_under_way_are_slow() -> None:
    """One program a multiprocessor and two stages: memory waits for its latency."""
    sizes = KNOWN["Qwen3-30B-A3B"]
    deep, shallow = (product(sizes, 1, Tile(16, 64, 64, 1, 4, stages), "half", H200, True) for stages in (4, 2))
    assert shallow.seconds > 1.2 * deep.seconds and shallow.bytes == deep.bytes


def test_what_does_not_fit_takes_forever() -> None:
    tile = Tile(128, 256, 128, 1, 8, 4)
    assert resident(tile, "half", H200) == 0
    assert estimate(KNOWN["Mixtral-8x7B"], 64, tile, "half", H200) == math.inf


@pytest.mark.parametrize("kind", ["half", "packed"])
def test_the_table_s_lines_for_it_are_the_model_s(kind: str) -> None:
    """None is more than 5 % slower than the best; a line that the model has a reason against would be."""
    for rows in ROWS:
        line = tile_for(90, kind, rows)
        among = [t for t in candidates(90, kind, rows) if t.resident == 0 and t.band == 1 and t.warps == line.warps]
        best = derive(rows, kind, H200, among)
        assert cost(line, rows, kind, H200) < 1.05 * cost(best, rows, kind, H200), rows
    assert derive(64, "half", H200, [Tile(64, 128, 64, 4, 4, 4), Tile(64, 32, 32, 4, 4, 2)]).columns == 128
    assert cost(Tile(128, 32, 64, 8, 4, 2), 128, "packed", H200) > 1.05 * cost(
        tile_for(90, "packed", 128), 128, "packed", H200
    )
