"""What tokens cost at one batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.planning.costs import costs, memory_on, sizes
from moec.planning.devices import devices
from moec.planning.estimate import estimate
from moec.planning.formats import FORMATS
from moec.planning.load import UNIFORM
from moec.planning.on_cpu import this_machine
from moec.planning.pace import decode_time
from moec.planning.probed import keep
from moec.planning.serving import Asked
from moec.planning.traffic import Traffic
from tests.planning.records import own_cache, record
from tests.planning.shapes import mixture

BF16, DEVICE = FORMATS["bf16"], devices()["rtx4090"]


def test_a_million_tokens_cost_the_hours_that_they_take() -> None:
    (row,) = costs(mixture(), [BF16], [DEVICE, devices()["l4"]], [8], 64, UNIFORM, {"rtx4090": 0.5})
    time = decode_time(mixture(), BF16, DEVICE, 8, 64)
    assert row.a_million == pytest.approx((0.5 * time.low / 8 * 1e6 / 3600, 0.5 * time.high / 8 * 1e6 / 3600))
    assert row.tokens_a_second == pytest.approx((8 / time.high, 8 / time.low)) and row.devices == 1


def test_several_devices_cost_several_prices() -> None:
    huge = mixture(experts=64, layers=32)
    (row,) = costs(huge, [BF16], [DEVICE], [1], 64, UNIFORM, {"rtx4090": 1.0})
    assert row.devices == sizes(huge, BF16, DEVICE, 1, 64)[0] in (2, 4)
    assert row.a_million[0] == pytest.approx(row.devices / (row.tokens_a_second[1] * 3600) * 1e6)


def test_what_no_node_holds_has_no_cost() -> None:
    assert sizes(mixture(experts=512, layers=64), BF16, DEVICE, 1, 64) == []
    assert list(costs(mixture(experts=512, layers=64), [BF16], [DEVICE], [1], 64, UNIFORM, {"rtx4090": 1.0})) == []


def test_this_machine_holds_what_its_engines_hold_and_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache(tmp_path / "cache", monkeypatch)
    keep(record())
    here, shape = this_machine("cpu"), mixture()
    assert memory_on(shape, BF16, here, 8, 64).weights > 1.9 * memory_on(shape, BF16, DEVICE, 8, 64).weights
    assert sizes(shape, BF16, here, 1, 64) == [1] and sizes(mixture(512, layers=64), BF16, here, 1, 64) == []
    found = estimate(
        shape, ("bf16",), ("cpu",), (1,), 64, asked=Asked(prices={"cpu": 0.1}, traffic=Traffic(0.001, 8, 2))
    )
    assert found.serving and found.serving.costs[0].origin.startswith("measured here")
    assert found.serving.traffic[0].devices == 1 and found.serving.spreads == ()
