"""The probe, on engines that are tiny: what it finds depends on the machine, that it finds it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.execution.machine import cores, machine
from moec.execution.memory import OwnPeak, own_bytes
from moec.planning.formats import find_format
from moec.planning.on_cpu import ThisMachine
from moec.planning.probed import Record, runtime_version
from moec.timing.probe import Probe, Sizes, largest_cache, probe
from moec.timing.probe_engines import FORMS, Block, Small
from tests.planning.test_on_cpu import DENSE

TINY = Sizes(
    forms=FORMS[:2], least_bytes=2**16, widths=(64,), rows=(1, 4), blocks=(Block(64, 64, 4, 2),), gates=(16, 2),
    tokens=(1, 4), decoders=(Small(1, 2, heads=2, head_size=16),), lengths=(8, 16), texts=((1, 8), (2, 8)), rounds=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return probe(tmp_path_factory.mktemp("probe"), TINY)


def test_a_record_says_where_it_was_made(found: Record) -> None:
    assert found.machine == machine() and found.versions["onnxruntime"] == runtime_version() != ""
    assert {"1", str(cores())} <= set(found.read) and found.bandwidth > 0


def test_every_cost_is_there_and_none_is_negative(found: Record) -> None:
    assert list(found.products) == list(found.experts) == ["fp32", "int4"]
    assert set(found.calls) == {"token", "prompt", "prompts"} and 0 < found.low <= 1 <= found.high
    for costs in found.products.values():
        assert costs.rows == (1, 4) and 0 < costs.seconds(1, 64 * 64, 128) <= costs.seconds(4, 64 * 64, 128)
    for experts in found.experts.values():
        assert (
            min(*experts.a_weight, experts.a_block, experts.an_expert, experts.idle, experts.a_number, experts.an_inner)
            >= 0
        )


def test_a_plan_rests_on_it(found: Record) -> None:
    device = ThisMachine("cpu", 1.0, 1.0, {32: 1.0}, record=found, rounded=False)
    time = device.time(DENSE, find_format("int4"), 1, 8, True)
    assert time is not None and 0 < time.low <= time.high < 1
    assert (
        ThisMachine("cpu-int8", 1.0, 1.0, {32: 1.0}, record=found, rounded=True).time(
            DENSE, find_format("int4"), 1, 8, True
        )
        is None
    )


def test_nothing_stays_in_memory_that_is_smaller_than_the_cache() -> None:
    assert 16 * 2**20 <= largest_cache() <= 192 * 2**20


def test_an_empty_folder_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(FileExistsError):
        probe(tmp_path, TINY)


@pytest.mark.repeats
def test_it_takes_no_more_memory_than_it_asks_for(tmp_path: Path) -> None:
    sizes, before = Sizes(least_bytes=24 * 2**20, decoders=TINY.decoders, lengths=(8,), texts=((1, 8),)), own_bytes()
    with OwnPeak() as peak:
        made = Probe(tmp_path, sizes)
    assert made.sizes.memory_bytes / 3 < peak.bytes - before < sizes.memory_bytes
