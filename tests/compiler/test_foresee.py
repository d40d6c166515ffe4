"""What a compilation would do, said from a config alone, is what it does."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from moec.compiler.foresee import foresee
from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from tests import zoo
from tests.planning import configs, published


def test_passes_fire_as_often_as_they_do(tmp_path: Path) -> None:
    folder = zoo.save("mixtral", tmp_path / "its model")
    found = foresee(f"{folder}/config.json", "quantize(bits=4, group=16)")[0]  # layers are alike: one is looked at
    assert "its first 1 of 2 layers" in found.model and found.refusals == ()
    _, steps = Pipeline.parse("find-moe, fuse-moe").run(zoo.captured("mixtral"))
    did = {step.name: step.rewrites for step in steps}
    said = {step.name.partition("(")[0]: int(step.rewrites) for step in found.steps}
    assert all(did[name] == 2 * said[name] for name in ("find-moe", "fuse-moe")) and said["quantize"] > 0
    words = shlex.split(found.command)
    assert words[:3] == ["moec", "compile", f"{folder}/config.json"] and words[6].startswith("quantize(group=16)")


def test_what_would_be_left_alone_is_said(tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.MIXTRAL | {"intermediate_size": 14337, "num_hidden_layers": 1})
    found = foresee(path, "quantize(bits=4, experts=16, group=64)")[0]
    assert [s.misses for s in found.steps if s.name.startswith("quantize")] == [()]
    refused = foresee(path, "quantize(bits=4, group=64)")[0]
    assert "14337" in refused.refusals[0][0] and refused.steps == ()


def test_a_targets_refusal_and_its_way_out(tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.MIXTRAL | {"num_hidden_layers": 1})
    fp4, unknown, ok = foresee(path, "quantize(format=nvfp4)", ("onnxruntime", "onnxruntime:x=1", "tensorrt:sm100"))
    assert "format=int" in fp4.refusals[0][1] and "precision=" in unknown.refusals[0][1] and ok.refusals == ()


def test_the_real_shape_of_deepseek_v3_is_rehearsed_in_its_first_4_layers(tmp_path: Path) -> None:
    found = foresee(configs.write(tmp_path, configs.DEEPSEEK_V3))[0]
    assert "its first 4 of 61 layers" in found.model and found.refusals == ()
    assert ("fuse-moe", "1") in [(s.name, s.rewrites) for s in found.steps]


def test_a_model_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="M201"):
        foresee(f"{tmp_path / 'model.py'}:make")


def test_a_model_that_is_only_counted_is_refused_by_every_target(tmp_path: Path) -> None:
    found = foresee(configs.write(tmp_path, published.KIMI_K2), "", ("onnxruntime", "tensorrt:sm90"))
    assert all("kimi_k2" in each.refusals[0][0] and each.steps == () and each.effort is None for each in found)
