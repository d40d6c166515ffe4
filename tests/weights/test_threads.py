"""Pieces are worked on by several threads, each alone; an error of one ends all."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, get_ident

import pytest
import torch

from moec.weights.threads import in_threads
from tests.torch_threads import torch_threads


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with torch_threads(request.param) as count:
        yield count


def test_each_item_is_worked_on_once(threads: int) -> None:
    done: list[int] = []
    in_threads(done.append, iter(range(100)))
    assert sorted(done) == list(range(100)) and (threads > 1 or done == list(range(100)))
    in_threads(done.append, [])
    assert len(done) == 100


def test_two_work_at_once_and_each_computes_alone() -> None:
    before, meet, seen = torch.get_num_threads(), Barrier(2), dict[int, int]()
    torch.set_num_threads(2)

    def work(_: int) -> None:
        meet.wait(timeout=60)  # broken, and an error, unless another thread comes
        seen[get_ident()] = torch.get_num_threads()

    try:
        in_threads(work, range(4))
        assert list(seen.values()) == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_first_error_is_raised_and_no_more_is_begun(threads: int) -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        in_threads(work, range(10**6))
    assert len(begun) < 10**6 and torch.get_num_threads() == threads


def test_tensors_of_inference_mode_can_be_written(threads: int) -> None:
    with torch.inference_mode():
        found = torch.zeros(4)
        in_threads(lambda k: found[k : k + 1].fill_(k), range(4))
    assert found.tolist() == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="inference tensor"):
        in_threads(lambda k: found[k : k + 1].fill_(k), range(4))
