"""Choosing a tile: from times that were written down, and in the interpreter, where the search runs as it would on a
GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moec.dialect import Activation
from moec.kernels import launch
from moec.kernels.ahead import SHARED_LIMIT_BYTES, compile_ahead
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import recording
from moec.kernels.tiles import ROWS, Tile, rows_for, table, tile_for
from moec.kernels.tuning import SIZES, BlockExperts, candidates, choose, clock_of, fits, relative, shared_bytes, tune
from tests.kernels.accuracy import problem
from tests.kernels.conftest import Interpret

FIRST = Tile(64, 128, 64, 4, 4, 3)
# milliseconds, made up: each size has a best value, and they add up
TIMES: dict[str, dict[int, float]] = {
    "columns": {32: 9, 64: 4, 128: 5, 256: 7},
    "depth": {32: 3, 64: 2, 128: 4},
    "stages": {2: 4, 3: 3, 4: 2, 5: 2.5},
    "warps": {4: 3, 8: 2.5},
    "resident": {0: 2, 1: 1.5, 2: 1.7},
    "band": {1: 3, 2: 2, 4: 2.5, 8: 2.6},
}
BEST = Tile(64, 64, 64, 2, 8, 4, 1)


def recorded(tile: Tile) -> float:
    return sum(times[getattr(tile, name)] for name, times in TIMES.items())


def test_the_best_is_found_and_each_is_measured_once() -> None:
    asked: list[Tile] = []

    def cost(tile: Tile) -> float:
        asked.append(tile)
        return recorded(tile)

    every = candidates(90, "half", 64)
    best, known = choose(FIRST, every, cost)
    assert best == BEST == min(every, key=recorded) and recorded(FIRST) > recorded(BEST)
    assert len(asked) == len(set(asked)) == len(known) < len(every) / 5


@pytest.mark.parametrize(("name", "cost", "best"), [
    ("noise", lambda t: 1.0 if t == FIRST else 0.995, FIRST),
    ("more than noise", lambda t: 1.0 if t.warps == 4 else 0.98, replace(FIRST, warps=8)),
    ("nothing else runs", lambda t: recorded(t) if t == FIRST else math.inf, FIRST),
    ("not what is best alone", lambda t: recorded(t) if t.columns != 64 else math.inf, replace(BEST, columns=128)),
])  # fmt: skip
def test_what_is_chosen(name: str, cost: Callable[[Tile], float], best: Tile) -> None:
    assert choose(FIRST, candidates(90, "half", 64), cost)[0] == best


def test_only_what_may_be_taken_and_only_in_time() -> None:
    assert choose(FIRST, [], recorded)[0] == FIRST
    best, known = choose(FIRST, candidates(90, "half", 64), recorded, end=0.0)
    assert best == FIRST and list(known) == [FIRST]


@pytest.mark.parametrize("kind", ["half", "single", "packed"])
@pytest.mark.parametrize("sm", [80, 86, 90, 100, 120])
def test_candidates_fit_and_the_table_is_among_them(sm: int, kind: str) -> None:
    for rows in ROWS:
        found = candidates(sm, kind, rows)
        assert len(found) == len(set(found)) > 20 and tile_for(sm, kind, rows) in found
        assert all(shared_bytes(t, kind) <= SHARED_LIMIT_BYTES[sm] for t in found)
        assert {t.resident for t in found} == {0, 1, 2}
    assert not fits(Tile(128, 256, 128, 8, 8, 5), kind, sm) or kind == "packed"
    assert fits(Tile(128, 256, 32, 8, 4, 2), kind, sm) == (sm == 100 and kind != "single")  # 256 sums a thread


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def really_shared(tile: Tile, sm: int) -> int:
    """What the compiler makes of it; runs where `compiler` says."""
    with recording(sm) as found:
        ids = empty(4096, 2, dtype=torch.int64)
        launch.experts(
            empty(4096, 4096),
            ids,
            empty(4096, 2),
            empty(8, 28672, 4096),
            empty(8, 4096, 14336),
            rule=Activation(),
            tile=tile,
        )
    return next(compile_ahead(x, sm).shared_bytes for x in found.launches if "rows_out" in x.kernel.__name__)


@pytest.mark.parametrize(
    ("tile", "sm"),
    [(Tile(128, 128, 64, 8, 8, 3), 80), (Tile(64, 128, 64, 4, 4, 4), 90), (Tile(128, 128, 64, 8, 8, 5), 89)],
    ids=str,
)
def test_never_more_is_left_out_than_does_not_fit(compiler: Interpret, tile: Tile, sm: int) -> None:
    really = compiler(really_shared, tile, sm)
    assert really / 2 < shared_bytes(tile, "half") <= really
    assert fits(tile, "half", sm) == (really <= SHARED_LIMIT_BYTES[sm])


def block(kind: str = "single", tokens: int = 5) -> BlockExperts:
    made = problem(tokens=tokens, hidden=64, inner=32)
    w_in: Tensor | ExpertCodes = made.w_in
    if kind == "packed":
        w_in = ExpertCodes(torch.zeros(6, 64, 32, dtype=torch.uint8), torch.ones(6, 64, 2))
    return BlockExperts(w_in, made.w_out, None, None, Activation(), 2, torch.float32)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (128, 8), (4, 1), (256, 8), (6, 2)])
def test_as_many_tokens_as_the_line_is_for(experts: int, top_k: int) -> None:
    tried = BlockExperts(
        empty(experts, 64, 32), empty(experts, 32, 32), None, None, Activation(), top_k, torch.bfloat16
    )
    for rows in ROWS:
        assert [rows_for(tokens, top_k, experts) for tokens in tried.tokens(rows)] == [rows] * (2 if rows == 16 else 1)
    assert tried.kind == "half" and block().kind == "single" and block("packed").kind == "packed"


def test_what_computes_something_else_or_does_not_run_is_not_chosen() -> None:
    other, broken, fast = (replace(FIRST, warps=8), replace(FIRST, depth=32), replace(FIRST, depth=128))
    times, last = {FIRST: 4.0, other: 1.0, broken: 1.0, fast: 2.0}, [FIRST]

    def call(tile: Tile) -> Tensor:
        if tile == broken:
            raise RuntimeError("out of resources")
        last[0] = tile
        return torch.ones(3) * (1.001 if tile == other else 1.0)

    def clock(run: Callable[[], Any]) -> float:
        run()
        return times[last[0]]

    cost = relative([call, call], FIRST, clock)
    assert [cost(t) for t in (FIRST, other, broken, fast)] == [1.0, math.inf, math.inf, 0.5]


def tuned() -> tuple[Any, list[str], float]:
    """A search in the interpreter, by the clock on the wall, and how far its result is from the table's; runs where
    `interpret` says."""
    said: list[str] = []
    found = tune([block("packed")], seconds=0.3, rows=(16,), tell=said.append)
    call = block("packed").calls(16)[1]
    before = call(tile_for(80, "packed", 16))
    after = call(found.get((80, "packed", 16), tile_for(80, "packed", 16)))
    return found, said, float((before - after).norm() / before.norm().clamp(min=1e-9))


def test_the_search_runs(interpret: Interpret) -> None:
    found, said, distance = interpret(tuned)
    assert distance < 1e-4 and len(said) == 1 and "sm_80 packed 16: " in said[0] and "tiles tried" in said[0]
    for key, tile in found.items():
        assert key == (80, "packed", 16) and tile in candidates(80, "packed", 16) and tile != table()[key]


def test_nothing_is_measured_after_the_end() -> None:
    said: list[str] = []
    assert tune([block()], seconds=-1.0, tell=said.append) == {} and said == [
        f"sm_80 single {rows}: not measured" for rows in ROWS
    ]


def test_the_clock_on_the_wall() -> None:
    calls: list[int] = []
    assert clock_of(torch.device("cpu"))(lambda: calls.append(1)) >= 0 and calls == [1]
    assert set(SIZES) == set(TIMES)
