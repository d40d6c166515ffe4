"""One model on several devices."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace

from moec.planning.balance import busiest
from moec.planning.devices import devices
from moec.planning.formats import FORMATS, stored_bytes
from moec.planning.load import UNIFORM, Load
from moec.planning.memory import memory_of
from moec.planning.spread import spread, spreads
from moec.planning.step import time_of
from moec.planning.work import Work
from tests.planning.shapes import dense, mixture

H200, BF16 = replace(devices()["h200"], name="paper"), FORMATS["bf16"]  # nobody measured it: the roofline everywhere
WORK = Work(mixture(64, 4, 16), BF16, 64, 1024)
HOT = Load("zipf:1.0", 1.0)


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
    """By what it computes: its own experts' part. Attention and the head are its own texts', whatever the load."""
    slow = replace(H200, rates={16: 0.01})
    skewed = dataclasses.replace(WORK, load=Load("zipf:1.0", 1.0))
    even, uneven = (spread(work, slow, 8, "expert").time for work in (WORK, skewed))
    peak = busiest(0, WORK.shape.mixtures[0], 8, skewed.load)
    experts = sum(2 * 8 * (m.parameters - m.idle) for m in WORK.shape.mixtures)
    whole = dataclasses.replace(WORK, texts=8).step.flops
    assert even and uneven and peak > 3
    assert uneven.low / even.low == pytest.approx(1 + (peak - 1) * experts / whole, rel=1e-3)
    assert uneven.low / even.low < 0.99 * peak


def test_no_rank_reads_more_experts_than_it_holds() -> None:
    """With all experts touched the load changes nothing of what is read."""
    slow, many = replace(H200, bandwidth=0.01), dataclasses.replace(WORK, texts=4096)
    times = [
        spread(dataclasses.replace(many, load=load), replace(slow, memory=1e6), 8, "expert").time
        for load in (UNIFORM, Load("zipf:0.5", 0.5))
    ]
    assert times[0] and times[1] and times[1].low == pytest.approx(times[0].low, rel=1e-3)
    few = dataclasses.replace(WORK, texts=8)
    even, uneven = (spread(dataclasses.replace(few, load=x), slow, 8, "expert").time for x in (UNIFORM, HOT))
    assert even and uneven and uneven.low > 1.05 * even.low  # the first rank's are asked for more


def test_beyond_a_node_only_what_sends_nothing_has_a_time() -> None:
    rows = {s.how: s for s in spreads([WORK], H200, 64)}
    assert rows["data"].time and rows["tensor"].fits and rows["tensor"].time is None and rows["expert"].time is None


def test_a_dense_model_has_no_experts_to_split_and_what_does_not_fit_has_no_time() -> None:
    assert [s.how for s in spreads([Work(dense(), BF16, 1, 64)], H200, 2)] == ["tensor", "data"]
    huge = Work(mixture(256, 8, 64), BF16, 1, 64)
    rows = {s.how: s for s in spreads([huge], devices()["l4"], 2)}
    assert not rows["data"].fits and rows["data"].time is None
