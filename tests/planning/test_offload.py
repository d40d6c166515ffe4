"""Experts outside of the device."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from moec.errors import MoecError
from moec.planning.devices import devices
from moec.planning.formats import FORMATS
from moec.planning.links import Link
from moec.planning.load import UNIFORM, read_load
from moec.planning.offload import offload, offloads
from moec.planning.touched import distinct
from tests.planning.shapes import dense, mixture

BF16, SHAPE = FORMATS["bf16"], mixture()
EXPERT = 3 * 1024 * 2048 * 2  # bytes
GIGABYTE = Link("made", 1.0, "made")


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_uniform_experts_are_missed_in_proportion(batch: int) -> None:
    row = offload(SHAPE, BF16, None, batch, GIGABYTE, 0.25, UNIFORM)
    assert row.kept == 2 and row.hit_rate == pytest.approx(0.25)
    sent = 4 * distinct(8, 2, batch) * 0.75 * EXPERT
    assert row.bytes_a_step == pytest.approx(sent) and row.bytes_a_token == pytest.approx(sent / batch)
    assert row.tokens_a_second == pytest.approx(batch / (sent / 1e9))


def test_popular_experts_are_found_more_often() -> None:
    skewed = offload(SHAPE, BF16, None, 1, GIGABYTE, 0.25, read_load("zipf:1.0", SHAPE))
    assert skewed.hit_rate > 0.5
    even = offload(SHAPE, BF16, None, 1, GIGABYTE, 0.25, UNIFORM)
    assert skewed.tokens_a_second and even.tokens_a_second and skewed.tokens_a_second > even.tokens_a_second


def test_as_many_stay_as_fit() -> None:
    small = replace(devices()["l4"], memory=1.35)  # the runtime takes 1 GiB
    rows = list(offloads(SHAPE, [BF16], [small, devices()["h200"]], [1], 64, ["ram"], UNIFORM))
    assert [r.device for r in rows] == ["l4", "h200"] and 0 < rows[0].kept < 8
    assert rows[0].rate == 32 and rows[1].kept == 8 and rows[1].bytes_a_step == 0 and rows[1].hit_rate == 1
    assert rows[1].tokens_a_second is None
    nothing = replace(small, memory=1.05)
    assert list(offloads(SHAPE, [BF16], [nothing], [1], 64, ["ram"], UNIFORM)) == []


def test_without_a_device_parts_of_them_are_tried() -> None:
    rows = list(offloads(mixture(experts=16), [BF16], [None], [1], 64, ["disk", "7GB/s"], UNIFORM))
    assert [(r.kept, r.rate) for r in rows] == [(2, 5), (4, 5), (8, 5), (2, 7), (4, 7), (8, 7)]


def test_a_dense_model_has_none() -> None:
    with pytest.raises(MoecError, match="no experts"):
        list(offloads(dense(), [BF16], [None], [1], 64, ["ram"], UNIFORM))
    assert list(offloads(dense(), [BF16], [None], [1], 64, [], UNIFORM)) == []
    with pytest.raises(MoecError, match=r"M202[\s\S]*--offload"):
        list(offloads(SHAPE, [BF16], [None], [1], 64, ["tape"], UNIFORM))
