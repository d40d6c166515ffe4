"""Pieces are done in order, alone, and few at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from moec.workers import pool as module
from moec.workers.pool import Here, in_order
from moec.workers.working import pool, working_on
from tests.torch_threads import torch_threads


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with torch_threads(request.param) as count:
        yield count


def late(shared: float, item: int) -> tuple[int, int, bool]:
    time.sleep(shared / (item + 1))  # the first is done last
    return item, torch.get_num_threads(), torch.is_inference_mode_enabled()


def product(shared: Tensor, item: Tensor) -> Tensor:
    return item @ shared


def test_results_come_in_order_and_pieces_have_one_thread(threads: int) -> None:
    assert list(Here().each(late, 0.02, range(5))) == [(item, 1, True) for item in range(5)]
    assert torch.get_num_threads() == threads


def test_bytes_do_not_hang_on_the_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(300, 700, generator=generator) for _ in range(3)]
    shared, before, found = torch.randn(700, 500, generator=generator), torch.get_num_threads(), []
    for many in (1, 2, 4):
        torch.set_num_threads(many)
        found.append(torch.cat(list(Here().each(product, shared, rows))))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], torch.cat(rows) @ shared, rtol=1e-4, atol=1e-3)


def test_items_are_asked_for_when_their_turn_comes() -> None:
    events: list[str] = []
    items = (events.append(f"item {n}") or n for n in range(4))
    begin, end = (lambda n: events.append(f"begin {n}") or n), (lambda n: events.append(f"end {n}") or n)
    assert list(in_order(begin, end, items, 2)) == [0, 1, 2, 3]
    assert events[:6] == ["item 0", "begin 0", "item 1", "begin 1", "end 0", "item 2"]


def test_little_memory_means_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    wide: list[int] = []
    real = module.ThreadPoolExecutor
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda many: (wide.append(many), real(many))[1])
    monkeypatch.setattr(module, "available_bytes", lambda: 100)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    for held in (0, 1, 10, 10_000):
        list(Here().each(late, 0.0, range(2), held_bytes=held))
    torch.set_num_threads(before)
    assert wide == [8, 8, 5, 1]


def wrong(_shared: None, item: int) -> int:
    return 1 // item


def test_what_a_piece_raises_is_raised(threads: int) -> None:
    found = Here().each(wrong, None, (1, 0, 1))
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert torch.get_num_threads() == threads


def test_this_process_works_where_nobody_else_is_named() -> None:
    with working_on(None):
        assert isinstance(pool(), Here)
