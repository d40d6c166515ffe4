"""Counts, sizes and relations between figures are checked; how fast anything is is not."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import EagerEngine, Engine
from moec.program.program import Input
from moec.progress import Progress
from moec.timing.engines import bench_engines, default_sample, sizes_of
from tests.moe_module import MoeModel, source_of


class Sleeper(Engine):
    """Takes at least so long, and writes its name into a list."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.name, self.inputs, self.outputs = name, (Input("x", torch.float32, ("batch", "sequence", 4)),), ("y",)
        self._seconds, self._log = seconds, log

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._log.append(self.name)
        time.sleep(self._seconds)
        return {"y": inputs["x"]}


def test_runs_are_interleaved_in_a_rotating_order() -> None:
    log: list[str] = []
    found = bench_engines([Sleeper("a", 0, log), Sleeper("b", 0, log)], runs=4, warmup=2)
    assert log == ["a", "a", "b", "b", "a", "b", "b", "a", "a", "b", "b", "a"]
    assert [t.runs for t in found.timings] == [4, 4] and found.sizes == {"batch": 1, "sequence": 128}


def test_figures_belong_together() -> None:
    log: list[str] = []
    fast, slow = bench_engines(
        [Sleeper("fast", 0.001, log), Sleeper("slow", 0.02, log)], sizes={"batch": 3, "sequence": 5}, runs=5
    ).timings
    assert 1 <= fast.p50_ms <= fast.p90_ms <= fast.p99_ms and slow.p50_ms >= 20
    assert fast.ratio.first and fast.ratio.median == 1.0 and slow.ratio.rounds == 5
    assert slow.ratio.verdict == "too few runs"  # 5 give no interval, whatever they are
    assert slow.samples_per_s == pytest.approx(3 / slow.p50_ms * 1e3) and slow.tokens_per_s == pytest.approx(
        15 / slow.p50_ms * 1e3
    )


def test_real_engines_and_plain_data() -> None:
    program = source_of(MoeModel()).capture()
    found = bench_engines([EagerEngine(program)], sizes={"sequence": 9}, runs=2)
    assert (
        found.sizes == {"batch": 1, "sequence": 9}
        and json.loads(json.dumps(found.to_dict()))["timings"][0]["engine"] == "eager"
    )
    assert "p50" in str(found) and found.where.machine in str(found) and "torch" in found.where.versions


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleepers take exactly as long as they say: what they make of the time does not hang on the machine's load."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


@pytest.mark.usefixtures("clock")
def test_what_sleeps_longer_is_called_slower() -> None:
    engines = [Sleeper("a", 0.001, []), Sleeper("b", 0.01, []), Sleeper("c", 0.001, [])]
    found = bench_engines(engines, sizes={"sequence": 2}, runs=8, warmup=1)
    first, slow, other = found.timings
    assert slow.ratio.verdict == "slower" and slow.ratio.confidence == other.ratio.confidence == 0.975
    assert found.findings[0] == "b: forward slower, 0.10 times the speed of a (0.10 to 0.10)"
    assert found.findings[1] == "c: forward as fast as a, within 1%" and first.ratio.first
    assert found.to_dict()["timings"][1]["verdicts"] == {"forward": "slower"}


def test_progress_is_told_between_the_times() -> None:
    log: list[str] = []

    class Told(Progress):
        def stage(self, name: str) -> None:
            log.append(name)

        def advance(self, done: int, total: int, unit: str = "", what: str = "") -> None:
            log.append(f"{done}/{total}")

    bench_engines([Sleeper("a", 0, log)], sizes={"sequence": 2}, runs=2, warmup=1, progress=Told())
    assert log == ["warm up", "a", "time", "a", "1/2", "a", "2/2"]


def test_every_time_is_kept() -> None:
    found = bench_engines([Sleeper("a", 0, []), Sleeper("a", 0, [])], sizes={"sequence": 2}, runs=3, warmup=1)
    assert [(m.engine, m.round) for m in found.moments] == [(n, r) for r in range(3) for n in ("a", "a (2)")]
    assert {m.phase for m in found.moments} == {"forward"} and "moments" not in found.to_dict()


def test_what_loading_did_is_said_beside_the_times() -> None:
    quick, tuned = Sleeper("quick", 0, []), Sleeper("tuned", 0, [])
    tuned.prepared = "kernels chosen in 1.2 s"
    found = bench_engines([quick, tuned], sizes={"batch": 1, "sequence": 2}, runs=1, warmup=1)
    assert str(found).splitlines()[-1] == "tuned: kernels chosen in 1.2 s when it was loaded"
    assert [t["prepared"] for t in found.to_dict()["timings"]] == ["", "kernels chosen in 1.2 s"]


def test_default_inputs_are_ones_that_a_model_takes() -> None:
    inputs = [Input(n, torch.int64, ("batch", "sequence")) for n in ("input_ids", "attention_mask", "position_ids")]
    sample = default_sample(inputs, {"batch": 2, "sequence": 6})
    assert bool((sample["attention_mask"] == 1).all()) and sample["position_ids"][1].tolist() == list(range(6))
    assert int(sample["input_ids"].max()) <= 1


def test_nonsense_is_refused() -> None:
    engine = Sleeper("a", 0, [])
    for attempt in (
        lambda: bench_engines([]),
        lambda: bench_engines([engine], runs=0),
        lambda: sizes_of(engine.inputs, {"length": 3}),
    ):
        with pytest.raises(MoecError) as error:
            attempt()
        assert error.value.code == "M201"
    with pytest.raises(MoecError) as error:
        bench_engines([engine], {"x": torch.zeros(2, 3, 5)})
    assert error.value.code == "M211"
