"""A target refuses what passes are going to make before any weight is read, and says what it takes instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import moec
from moec import registry
from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.targets.backend import Backend, Refusal
from moec.targets.rehearsal import refused_early
from moec.targets.target import Target
from tests import zoo

NO_WORK = "moec.compiler.compile.check_finite"


@pytest.fixture(scope="module")
def captured() -> Program:
    return zoo.captured("mixtral")


def refusals_of(captured: Program, pipeline: str, target: str) -> list[Refusal]:
    goal = Target.parse(target)
    backend: Backend = registry.find("backends", goal.backend)()
    return list(refused_early(captured, Pipeline.parse(pipeline), backend, goal))


@pytest.mark.parametrize(
    ("pipeline", "target", "listed"),
    [
        ("quantize(format=nvfp4)", "onnxruntime", "format=int, bits=2|4|8, group=16|32|64|128"),
        ("quantize(bits=4, group=16, method=gptq)", "tensorrt:sm90", "group=64|128"),
        ("quantize(bits=4, group=16, budget_bits=3.0), calibrate-router", "tensorrt:sm90", "group=64|128"),
        (
            "prune-experts, quantize(group=16, rules={'*': {'method': 'gptq', 'symmetric': False}})",
            "tensorrt:sm90",
            "symmetric=True",
        ),
    ],
)
def test_a_target_says_what_it_takes_instead(pipeline: str, target: str, listed: str, captured: Program) -> None:
    assert listed in refusals_of(captured, pipeline, target)[0].fix


@pytest.mark.parametrize(
    ("pipeline", "listed"),
    [
        ("quantize(bits=5, group=16, method=gptq)", "bits are 2, 3, 4, 8"),
        ("quantize(group=48, method=gptq)", "groups are 16, 32, 64, 128"),
        ("quantize(group=16, budget_bits=3.0, widths=[3, 4])", "widths=[2, 4]"),
    ],
)
def test_settings_that_are_none_are_refused_with_those_that_are(pipeline: str, listed: str, captured: Program) -> None:
    with pytest.raises(MoecError, match="M203") as caught:
        refusals_of(captured, pipeline, "onnxruntime")
    assert listed in caught.value.fix


class Begun(Exception):
    """The work has begun."""


def compiled(model: Path, folder: Path, target: str) -> None:
    np.save(folder / "text.npy", np.arange(600) % 90)
    pipeline = "quantize(bits=4, group=16, method=gptq), calibrate-router"
    moec.compile(
        model,
        out=folder / "engine",
        target=target,
        pipeline=pipeline,
        calibration=folder / "text.npy",
        build=target == "onnxruntime",
    )


def test_a_compile_asks_before_any_work(mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NO_WORK, lambda *_: pytest.fail("the weights were read already"))
    with pytest.raises(MoecError, match="M208"):
        compiled(mixtral, tmp_path, "tensorrt:sm90")
    assert not (tmp_path / "engine").exists()


def test_what_the_target_takes_goes_on_to_the_work(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise Begun

    monkeypatch.setattr(NO_WORK, work)
    with pytest.raises(Begun):
        compiled(mixtral, tmp_path, "onnxruntime")


def test_what_is_said_is_what_would_be_said_at_the_end(captured: Program) -> None:
    for options in ("bits=8, group=16", "bits=2, group=16, symmetric=False"):
        for target in ("onnxruntime", "tensorrt:sm90"):
            goal = Target.parse(target)
            backend: Backend = registry.find("backends", goal.backend)()
            program, _ = (Pipeline.parse(f"quantize({options})") + backend.legalize(goal)).run(captured)
            assert refusals_of(captured, f"quantize({options}, method=hqq)", target) == backend.supports(program, goal)


def test_nothing_is_kept_and_without_work_nothing_is_asked(captured: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    before, digest = captured.text(), captured.digest()
    assert refusals_of(captured, "quantize(group=16, budget_bits=3.0)", "onnxruntime") == []
    assert captured.text() == before and captured.digest() == digest
    assert (
        refusals_of(captured, "prune-experts, quantize(group=16), calibrate-router", "onnxruntime") == []
    )  # without a text
    monkeypatch.setattr(Pipeline, "plan", lambda *_: pytest.fail("planned, though the work is soon done"))
    assert refusals_of(captured, "find-moe, fuse-moe", "onnxruntime") == []
    with pytest.raises(pytest.fail.Exception, match="planned"):
        refusals_of(captured, "prune-experts", "onnxruntime")
