"""The steps for ONNX Runtime: which a target gets, and that every one of them keeps the numbers of whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import moec
from moec.backends.onnxruntime.backend import Onnxruntime
from moec.backends.onnxruntime.lowering import steps_for
from moec.execution.engine import EagerEngine
from moec.frontend.source import Source
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.proof.compare import Tolerance, compare
from moec.targets.target import Target
from moec.weights.lazy import scale
from tests.zoo import save

TARGET, FP32 = Target("onnxruntime"), Tolerance.of(torch.float32)


def names(target: str, optimize_for: str = "latency") -> list[str]:
    return [step.name for step in steps_for(Target.parse(target), optimize_for)]


def prepared(source: Source, passes: str) -> Program:
    program, _ = Pipeline.parse(passes).run(source.capture(), Context())
    return Onnxruntime().legalize(TARGET).run(program, Context())[0]


def test_a_target_gets_the_steps_that_it_gains_from() -> None:
    assert set(names("onnxruntime")) - set(names("onnxruntime", "throughput")) == {"pack-products", "join-cuts"}
    for target in ("onnxruntime:cuda", "onnxruntime:accuracy=int8"):
        assert set(names("onnxruntime")) - set(names(target)) == {"unpack-products"}
    assert names("onnxruntime") == names("onnxruntime:cpu")


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime:cuda"])
def test_steps_have_names_of_their_own_and_say_what_they_are_for(target: str) -> None:
    steps = steps_for(Target.parse(target))
    assert len({step.name for step in steps}) == len(steps) and all(len(step.purpose) > 20 for step in steps)


@pytest.mark.parametrize(
    ("name", "passes", "last"),
    [("mixtral", "", "cut-logits"), ("llama", "quantize(bits=8, group=16)", "unpack-products")],
)
def test_every_step_keeps_the_numbers(name: str, passes: str, last: str, tmp_path: Path) -> None:
    source = moec.open_source(save(name, tmp_path / "model"))
    program = prepared(source, passes)
    samples = [source.sample({"batch": 2, "sequence": 7, "past_sequence": 3}, 1)]
    spoiled = program.clone()
    spoiled.weights["model.norm.weight"] = scale(program.weights["model.norm.weight"], 1.01)
    right, wrong = EagerEngine(program), EagerEngine(spoiled)
    found = []
    for step, engine in Onnxruntime().stages(program, TARGET):
        found.append(step)
        assert compare(right, engine, samples, FP32).ok, step
        assert not compare(wrong, engine, samples, FP32).ok, step
        engine.close()
    assert found[:2] == ["export to ONNX", "lower-attention"] and found[-1] == last
    assert "cut-logits" in found
