"""Counts, sizes and relations between figures are checked; how fast anything is is not."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.program.program import Input
from moec.timing.decoders import bench_decoders
from tests.timing.test_engines import clock as clock

CACHE = "past_key_values.0.key"


class Sleeper(Engine):
    """A decoder that takes at least so long for a token, and writes its name and the number of new tokens into a
    list."""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, int]]) -> None:
        self.name, self.outputs = name, ("logits", "present.0.key")
        ids, mask = (
            Input("input_ids", torch.int64, ("batch", "sequence")),
            Input("attention_mask", torch.int64, ("batch", "past_sequence + sequence")),
        )
        self.inputs = (ids, mask, Input(CACHE, torch.float32, ("batch", 1, "past_sequence", 2)))
        self._seconds, self._log = seconds, log

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch, new = inputs["input_ids"].shape
        self._log.append((self.name, new))
        time.sleep(self._seconds * new)
        return {
            "logits": torch.zeros(batch, new, 5),
            "present.0.key": torch.cat([inputs[CACHE], torch.zeros(batch, 1, new, 2)], dim=2),
        }


def test_runs_are_interleaved_in_a_rotating_order() -> None:
    log: list[tuple[str, int]] = []
    found = bench_decoders(
        [Sleeper("a", 0, log), Sleeper("b", 0, log)], {"sequence": 7}, max_tokens=3, runs=2, warmup=1
    )
    one = {name: [(name, 7), (name, 1), (name, 1)] for name in "ab"}
    assert log == one["a"] + one["b"] + one["a"] + one["b"] + one["b"] + one["a"]
    assert [t.runs for t in found.timings] == [2, 2] and found.sizes == {"batch": 1, "sequence": 7, "new": 3}


def test_figures_belong_together() -> None:
    engines = [Sleeper("fast", 0.0005, []), Sleeper("slow", 0.01, [])]
    fast, slow = bench_decoders(engines, {"batch": 3, "sequence": 5}, max_tokens=4, runs=3).timings
    assert slow.first_token_ms >= 50 and slow.prefill_tokens_per_s == pytest.approx(15 / slow.first_token_ms * 1e3)
    assert 10 <= slow.p50_ms <= slow.p90_ms <= slow.p99_ms and slow.decode_tokens_per_s == pytest.approx(
        3 / slow.p50_ms * 1e3
    )
    assert slow.first_token_ms <= slow.first_token_p90_ms <= slow.first_token_p99_ms
    assert fast.prefill_ratio.first and slow.decode_ratio.median < 1 and slow.prefill_ratio.median < 1
    assert slow.ratios == {"prefill": slow.prefill_ratio, "decode": slow.decode_ratio}


def test_plain_data_and_text() -> None:
    engine = Sleeper("one", 0, [])
    engine.prepared = "kernels chosen"
    found = bench_decoders([engine], {"sequence": 2}, max_tokens=2, runs=1)
    assert str(found).endswith("one: kernels chosen when it was loaded")
    assert json.loads(json.dumps(found.to_dict()))["timings"][0]["engine"] == "one"
    assert "batch 1, 2 + 2 tokens; 1 runs of each after 1 to warm up" in str(found) and "the first new token" in str(
        found
    )


@pytest.mark.usefixtures("clock")
def test_both_phases_are_compared_and_every_time_is_kept() -> None:
    engines = [Sleeper("fast", 0.0005, []), Sleeper("slow", 0.005, [])]
    found = bench_decoders(engines, {"sequence": 2}, max_tokens=3, runs=8)
    assert [r.verdict for r in found.timings[1].ratios.values()] == ["slower", "slower"]
    assert found.timings[1].decode_ratio.confidence == 0.975  # two are asked for
    assert len(found.moments) == 8 * 2 * 3 and {m.number for m in found.moments if m.phase == "decode"} == {1, 2}
    speed = found.speed_of("slow")
    assert list(speed.phases) == ["prefill", "decode"] and len(speed.phases["decode"].times_ms) == 16
    assert speed.own_bytes is None and speed.peak_bytes > 0


def test_nonsense_is_refused() -> None:
    engine = Sleeper("a", 0, [])
    for attempt in (
        lambda: bench_decoders([]),
        lambda: bench_decoders([engine], max_tokens=1),
        lambda: bench_decoders([engine], {"past_sequence": 3}),
    ):
        with pytest.raises(MoecError) as error:
            attempt()
        assert error.value.code == "M201"
    encoder = Sleeper("encoder", 0, [])
    encoder.inputs = encoder.inputs[:2]
    with pytest.raises(MoecError) as error:
        bench_decoders([engine, encoder])
    assert error.value.code == "M211" and error.value.where == "encoder"
