"""A target refuses what passes are going to make before any weight is read, and says what it takes instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import moec
from moec import registry
from moec.engine import Backend
from moec.errors import MoecError
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline import Pipeline
from moec.program import Program
from moec.rehearsal import rehearse
from moec.target import Target
from tests import zoo

NO_WORK = "moec.driver.check_finite"


@pytest.fixture(scope="module")
def captured() -> Program:
    return HuggingFaceSource.from_model(zoo.build("mixtral")).capture()


def asked(captured: Program, pipeline: str, target: str) -> list[str]:
    goal = Target.parse(target)
    backend: Backend = registry.find("backends", goal.backend)()
    return [refusal.reason for refusal in rehearse(captured, Pipeline.parse(pipeline), backend, goal)]


@pytest.mark.parametrize(
    ("pipeline", "target", "code", "listed"),
    [
        ("quantize(bits=5, group=16)", "onnxruntime", "M203", "bits are 2, 3, 4, 8"),
        ("quantize(group=48)", "onnxruntime", "M203", "groups are 16, 32, 64, 128"),
        ("quantize(group=16, budget_bits=3.0, widths=[3, 4])", "onnxruntime", "M203", "widths=[2, 4]"),
        ("quantize(format=nvfp4)", "onnxruntime", "M208", "format=int, bits=2|4|8, group=16|32|64|128"),
        ("quantize(bits=4, group=16, method=gptq)", "tensorrt:sm90", "M208", "group=64|128"),
        ("quantize(bits=4, group=16, budget_bits=3.0), calibrate-router", "tensorrt:sm90", "M208", "group=64|128"),
        ("prune-experts, quantize(group=16, rules={'*': {'method': 'gptq', 'symmetric': False}})", "tensorrt:sm90", "M208", "symmetric=true"),
    ],
)
def test_it_is_refused_before_any_work(
    pipeline: str, target: str, code: str, listed: str, mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NO_WORK, lambda _: pytest.fail("the weights were read already"))
    np.save(tmp_path / "text.npy", np.arange(600) % 90)
    with pytest.raises(MoecError) as caught:
        moec.compile(mixtral, out=tmp_path / "engine", target=target, pipeline=pipeline, calibration=tmp_path / "text.npy", build=target == "onnxruntime")
    assert caught.value.code == code and listed in caught.value.fix
    assert not (tmp_path / "engine").exists()


def test_what_the_target_takes_goes_on_to_the_work(mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Work(Exception):
        pass

    def work(_: Program) -> None:
        raise Work

    monkeypatch.setattr(NO_WORK, work)
    np.save(tmp_path / "text.npy", np.arange(600) % 90)
    for pipeline in ("", "quantize(bits=4, group=16, method=gptq), calibrate-router", "prune-experts, quantize(group=16, budget_bits=3.0)"):
        with pytest.raises(Work):
            moec.compile(mixtral, out=tmp_path / "engine", pipeline=pipeline, calibration=tmp_path / "text.npy")


def test_what_is_said_is_what_would_be_said_at_the_end(captured: Program) -> None:
    for options in ("bits=8, group=16", "bits=4, group=16", "bits=2, group=16, symmetric=False", "group=16, experts=16"):
        for target in ("onnxruntime", "tensorrt:sm90"):
            goal = Target.parse(target)
            backend: Backend = registry.find("backends", goal.backend)()
            program, _ = (Pipeline.parse(f"quantize({options})") + backend.legalize(goal)).run(captured)
            assert asked(captured, f"quantize({options}, method=hqq)", target) == [r.reason for r in backend.supports(program, goal)]


def test_nothing_is_kept_and_without_outlines_nothing_is_asked(captured: Program) -> None:
    before, digest = captured.text(), captured.digest()
    assert asked(captured, "quantize(group=16, budget_bits=3.0)", "onnxruntime") == []
    assert captured.text() == before and captured.digest() == digest
    assert asked(captured, "prune-experts, calibrate-router", "onnxruntime") == []  # neither has a text
