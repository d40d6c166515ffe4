"""One model on several devices."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from moec.planning.devices import devices
from moec.planning.formats import FORMATS, stored_bytes
from moec.planning.memory import memory_of
from moec.planning.spread import spread, spreads
from moec.planning.step import time_of
from moec.planning.work import Work
from tests.planning.shapes import dense, mixture

H200, BF16 = replace(devices()["h200"], name="paper"), FORMATS["bf16"]  # nobody measured it: the roofline everywhere
WORK = Work(mixture(64, 4, 16), BF16, 64, 1024)


def test_what_each_device_holds() -> None:
    memory = memory_of(WORK.shape, BF16, 64, 1024)
    experts = stored_bytes(WORK.shape.tensors, BF16)["routed experts"]
    tensor, expert, data = (spread(WORK, H200, 8, how).bytes for how in ("tensor", "expert", "data"))
    assert tensor == pytest.approx(memory.runtime + (memory.total - memory.runtime) / 8, abs=8)
    assert data - expert == pytest.approx(experts * 7 / 8, abs=8) and tensor < expert < data


def test_one_device_is_the_roofline() -> None:
    alone = time_of(WORK.step, H200, BF16)
    for how in ("tensor", "expert", "data"):
        row = spread(WORK, H200, 1, how)
        assert row.sent == 0 and row.time is not None
        assert (row.time.low, row.time.high) == pytest.approx((alone.low, alone.high))


def test_what_is_sent() -> None:
    assert spread(WORK, H200, 8, "data").sent == 0
    assert spread(WORK, H200, 8, "tensor").sent == pytest.approx(64 * 16 * 2 * 2 * 7 / 8 * 1024 * 2)
    few, many = (spread(WORK, H200, n, "expert").sent for n in (2, 8))
    assert many < few  # each has fewer texts, which reach more ranks


def test_an_uneven_load_makes_the_busiest_rank_slower() -> None:
    even, uneven = (spread(WORK, H200, 8, "expert", n).time for n in (1.0, 3.0))
    assert even and uneven and uneven.low > 1.5 * even.low


def test_a_dense_model_has_no_experts_to_split_and_what_does_not_fit_has_no_time() -> None:
    assert [s.how for s in spreads([Work(dense(), BF16, 1, 64)], H200, 2)] == ["tensor", "data"]
    huge = Work(mixture(256, 8, 64), BF16, 1, 64)
    rows = {s.how: s for s in spreads([huge], devices()["l4"], 2)}
    assert not rows["data"].fits and rows["data"].time is None
