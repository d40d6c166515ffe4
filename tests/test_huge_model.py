"""`benchmarks/huge_model.py`: the drawn checkpoint is one that a folder could hold; a sink gets what a disk does."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moec.backends.onnx.writing import stream_model, write_model
from moec.backends.onnxruntime.lowering import lowered
from moec.huggingface.formats.fp8 import decode
from moec.huggingface.reading.folder import ModelFolder
from moec.huggingface.saving.save import plan_hf, save_hf
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.targets.backend import find_backend
from moec.targets.target import Target
from moec.weights.shards import stream_shards

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def huge() -> Iterator[dict[str, Any]]:
    """The benchmark's modules, by name."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import huge_model
        import huge_sink
        import huge_source

        yield {"model": huge_model, "sink": huge_sink, "source": huge_source}
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_shape_is_the_published_one(huge: dict[str, Any]) -> None:
    drawn = huge["source"].Drawn(huge["source"].deepseek_v3())
    numbers = sum(w.shape[0] * w.shape[-1] if len(w.shape) > 1 else w.shape[0] for n, w in drawn.stored.items()
                  if not n.endswith("_scale_inv"))  # fmt: skip
    assert numbers == 671_026_419_200, "parameters without multi-token prediction, as its model card counts them"
    expert = drawn.stored["model.layers.60.mlp.experts.255.down_proj.weight"]
    assert expert.shape == (7168, 2048) and expert.dtype == torch.float8_e4m3fn
    assert drawn.stored["model.layers.3.self_attn.kv_a_proj_with_mqa.weight_scale_inv"].shape == (5, 56)
    assert drawn.stored["model.layers.2.mlp.up_proj.weight"].shape == (18432, 7168)
    assert torch.equal(expert.read(100, 102).float(), expert.load()[100:102].float())


def test_any_rows_are_drawn_again_the_same(huge: dict[str, Any]) -> None:
    drawn = huge["source"].Drawn(huge["source"].deepseek_v3(1))
    head, weights = drawn.stored["lm_head.weight"], decode(drawn.stored)
    assert torch.equal(head.read(0, 129280)[129000:129010], head.read(129000, 129010)), "it goes round"
    some = weights["model.layers.0.mlp.gate_proj.weight"]
    assert torch.equal(some.read(0, 400)[130:400], some.read(130, 400))
    assert 0.5 < float(some.read(0, 128).std() * 7168**0.5) < 2, "as large as trained ones"
    other = weights["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(some.read(0, 2), other.read(0, 2))


def test_a_line_through_the_sizes(huge: dict[str, Any]) -> None:
    found = huge["model"].fit([1e9, 2e9, 3e9, 4e9], [12.0, 22.0, 32.0, 42.0])
    assert found["gigabytes_per_s"] == pytest.approx(0.1) and found["start_s"] == pytest.approx(2)
    assert found["worst_residual"] < 1e-9
    assert huge["model"].fit([1e9, 2e9, 3e9], [1.0, 4.0, 9.0])["worst_residual"] > 0.1


@pytest.mark.slow
def test_a_sink_gets_what_a_folder_holds(huge: dict[str, Any], tmp_path: Path) -> None:
    make, config = huge["source"], huge["source"].small_config(2)
    source, target = make.drawn_source(config), Target.parse("onnxruntime")
    program = source.capture(torch.float32)
    make.write_folder(config, tmp_path / "model")
    stored = ModelFolder(str(tmp_path / "model")).captured(torch.float32)[1]
    assert stored.keys() == program.weights.keys() & stored.keys() and len(stored) > 20
    assert all(torch.equal(weight.load(), program.weights[name].load()) for name, weight in stored.items())
    named, _ = Pipeline.parse("quantize(bits=4)").run(program, Context(seed=0))
    legal, _ = find_backend(target).legalize(target).run(named, Context(seed=0))
    model, _ = lowered(legal, target)
    sink, checkpoint = huge["sink"].CountingSink(), huge["sink"].CountingSink()
    stream_model(model, "model.onnx", sink)
    write_model(model, tmp_path / "model.onnx")
    for name, file in sink.files.items():
        content = (tmp_path / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
    stream_shards(checkpoint, plan_hf(named, source).stored, 10**9)
    save_hf(named, tmp_path / "checkpoint", source)
    (file,) = checkpoint.files.values()
    assert hashlib.sha256((tmp_path / "checkpoint" / "model.safetensors").read_bytes()).hexdigest() == file.sha256
    assert sink.sha256 != checkpoint.sha256 and sink.bytes > 10**6
