"""`benchmarks/first_day.py`: a second run goes on where the first ended, and what is wrong has a name."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.first_day.day import BENCHMARKS, rows_of


def test_the_stages_fit_into_the_time_that_there_is() -> None:
    from first_day_plan import CALL_SECONDS, STAGES, START_SECONDS, plan

    assert START_SECONDS + sum(stage.seconds for stage in STAGES) < 14 * 60
    for bundle in {stage.needs for stage in STAGES}:
        assert sum(stage.seconds for stage in STAGES if stage.needs == bundle) <= CALL_SECONDS < 600
    page = (BENCHMARKS.parent / "docs" / "gpu.md").read_text()
    assert plan() in page and all(f"| {stage.name} | {stage.seconds} | " in page for stage in STAGES)


def run_day(results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "first_day.py"), "--results", str(results), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_writes_its_stages_and_a_second_one_finds_them(tmp_path: Path) -> None:
    """Where nothing was brought along, the stage says so and the run's status is that of what is missing."""
    first = run_day(tmp_path, "--dry", "--only", "engines", "--json")
    assert first.returncode == 3 and "no engines were brought along" in first.stdout
    path = tmp_path / "engines.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "done", "reason": ""}))
    again = run_day(tmp_path, "--dry", "--only", "engines", "--json")
    report = json.loads(again.stdout)
    assert again.returncode == 0 and report["stages"]["engines"]["state"] == "done"
    assert report["versions"]["torch"] == version("torch") and "interpreter" in report["machine"]["gpu"]


def test_without_a_gpu_nothing_is_begun(tmp_path: Path) -> None:
    done = run_day(tmp_path, "--only", "kernels")
    assert "the bundle 'kernels' is not here" in done.stdout and not list(tmp_path.iterdir()) and done.returncode == 3
    missing = run_day(tmp_path, "--bundle", str(tmp_path / "nothing"))
    assert missing.returncode == 2 and "first_day_pack.py makes them" in missing.stderr
    strange = run_day(tmp_path, "--bundle", str(tmp_path))
    assert strange.returncode == 2 and "called engines or kernels" in strange.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_stage_that_cannot_begin_ends_itself_alone(tmp_path: Path) -> None:
    """No GPU; and a dry run's results, which are none of a real one."""
    (bundle := tmp_path / "kernels").mkdir()
    results = tmp_path / "results"
    dry = {"setting": {"dry": True, "small": False}, "state": "done", "stage": "kernels", "reason": "", "cases": []}
    results.mkdir()
    (results / "kernels.json").write_text(json.dumps({**dry, "rows": [], "notes": {}}))
    done = run_day(results, "--bundle", str(bundle), "--only", "kernels", "sanitizer", "--json")
    states = json.loads(done.stdout[done.stdout.index("{") :])["stages"]
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert {name: s["state"] for name, s in states.items()} == {"kernels": "absent", "sanitizer": "absent"}
    assert "no NVIDIA GPU" in states["kernels"]["reason"]


def test_a_process_that_dies_is_a_broken_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own status for a traceback is that of a wrong number."""
    import first_day

    monkeypatch.setattr(first_day, "limited", lambda *_: 1)
    options = argparse.Namespace(dry=True, results=tmp_path, bundle=[])
    assert first_day.start(first_day.STAGES[0], options, tmp_path) == "broken"
    assert "ended with 1" in first_day.found(first_day.STAGES[0], options)["reason"]


def running(process: int) -> bool:
    """Whether a process is there and not merely waited for."""
    try:
        return Path("/proc", str(process), "stat").read_text().split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    from first_day import limited

    started = tmp_path / "started"
    leaves_a_child = ["sh", "-c", f"sleep 60 & echo $! > {started}"]
    assert limited(leaves_a_child, dict(os.environ), 60) == 0
    child = int(started.read_text())
    for _ in range(600):  # it would sleep for longer than this
        if not running(child):
            break
        time.sleep(0.05)
    assert not running(child)
    assert limited(["sleep", "60"], dict(os.environ), 0.1) is None
    assert limited(["sh", "-c", "exit 7"], dict(os.environ), 60) == 7


def test_a_stage_goes_on_where_its_time_ended(tmp_path: Path) -> None:
    from first_day_rows import read, run

    seen = []

    def work(rows: Any, end_after: int = 99) -> None:
        for case in rows.todo("abc"):
            seen.append(case)
            rows.check("someone", 1.0, "errors", 2.0)
            rows._end = rows._end if len(seen) < end_after else 0.0

    state, reason = run(rows_of(tmp_path, dry=True), lambda rows: work(rows, 2))
    assert (state, seen) == ("late", ["a", "b"]) and "c" in reason
    assert run(rows_of(tmp_path, dry=True), work) == ("done", "") and seen == ["a", "b", "c"]
    assert [row["case"] for row in read(tmp_path / "stage.json")["rows"]] == ["a", "b", "c"]
    assert rows_of(tmp_path, dry=False).done == []  # what a dry run found is no result


@pytest.mark.parametrize(("value", "bound"), [(2.1, 2.0), (float("nan"), 2.0), (float("inf"), float("inf"))])
def test_a_wrong_number_has_a_name_and_is_tried_again(tmp_path: Path, value: float, bound: float) -> None:
    from first_day_rows import run

    def work(rows: Any) -> None:
        for _ in rows.todo(["two tokens"]):
            rows.check("moec", value, "errors", bound)

    state, reason = run(rows_of(tmp_path), work)
    assert state == "wrong" and reason.startswith("stage: two tokens: moec: ") and f"at most {bound:.3g} " in reason
    assert rows_of(tmp_path).done == [] and rows_of(tmp_path).rows == []


def test_an_aim_that_is_missed_stops_nothing(tmp_path: Path) -> None:
    from first_day_report import missed
    from first_day_rows import run

    def work(rows: Any) -> None:
        for _ in rows.todo(["a"]):
            rows.aim("moec", 0.5, "times as fast", 1.3)

    rows = rows_of(tmp_path)
    assert run(rows, work) == ("done", "")
    assert missed(rows.rows) == "- a: moec: 0.5 times as fast, aim 1.3"


def test_beside_nothing_but_zeros_nothing_is_right() -> None:
    """What reads memory that nobody wrote may find zeros, in the reference too."""
    from first_day_calls import errors
    from first_day_errors import distance, typical

    zeros = torch.zeros(3, 4)
    apart = errors({"x": zeros}, {"x": zeros}, None, 1, 0.9)["x", 0]
    for far in (distance(zeros, zeros.double()), typical(zeros, zeros.double()), apart):
        assert far == float("inf")


def test_what_stands_at_padding_is_nobody_s() -> None:
    from first_day_calls import errors

    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    right = {"logits": torch.randn(2, 3, 7), "cache": torch.randn(2, 4, 3, 5)}
    padded = {name: value.clone() for name, value in right.items()}
    padded["logits"][0, 0], padded["cache"][0, :, 0] = float("nan"), float("nan")
    assert set(errors(padded, right, mask, 3, 1.0).values()) == {0}
    padded["logits"][0, 1], padded["cache"][0, 0, 1, 0] = float("nan"), float("nan")
    found = errors(padded, right, mask, 3, 1.0)
    assert found == {(name, text): 0 if text else float("inf") for name in right for text in (0, 1)}
