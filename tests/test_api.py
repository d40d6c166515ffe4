"""The public functions, on a tiny model in memory and on a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import moec
from moec import api
from moec.errors import MoecError
from moec.pipeline.hooks import RecordHook
from moec.pipeline.pipeline import Pipeline
from moec.targets.target import Target
from tests.moe_module import VOCAB, MoeModel, source_of


@pytest.fixture(scope="module")
def model() -> MoeModel:
    return MoeModel().eval()


@pytest.fixture(scope="module")
def engine(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("api") / "engine"
    ids = torch.randint(0, VOCAB, (3, 11))
    report = moec.compile(
        model,
        out=out,
        target=Target("onnxruntime"),
        inputs={"input_ids": ids},
        dynamic={"input_ids": ("batch", "sequence")},
    )
    assert isinstance(report, moec.Report) and report.ok
    return out


def test_an_engine_runs_on_torch_and_numpy(model: nn.Module, engine: Path) -> None:
    opened = moec.load(engine)
    for shape in ((1, 1), (5, 23)):
        ids = torch.randint(0, VOCAB, shape)
        with torch.inference_mode():
            want = model(ids)["logits"]
        assert torch.allclose(opened(input_ids=ids)["logits"], want, atol=1e-3, rtol=1e-4)
        found = opened(input_ids=ids.numpy())["logits"]
        assert isinstance(found, np.ndarray) and np.allclose(found, want.numpy(), atol=1e-3, rtol=1e-4)
    assert not torch.allclose(opened(input_ids=ids)["logits"], want * 1.01, atol=1e-3, rtol=1e-4)  # the mutant


def test_files_are_checked_before_they_are_run(engine: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(engine, tmp_path / "copy"))
    data = bytearray((copy / "model.onnx.data").read_bytes())
    data[7] ^= 1
    (copy / "model.onnx.data").write_bytes(data)
    with pytest.raises(MoecError) as caught:
        moec.load(copy)
    assert caught.value.code == "M106"
    moec.load(copy, check="size").close()


def test_pipelines_are_objects_or_text(llama: Path, tmp_path: Path) -> None:
    record = RecordHook()
    report = moec.compile(
        llama,
        out=tmp_path / "engine",
        pipeline=Pipeline.parse("upcycle(experts=2, top_k=1)"),
        hooks=[record],
        save_hf=tmp_path / "hf",
    )
    assert report.pipeline == "upcycle(experts=2, top_k=1)" and report.ok
    assert [name for name, _ in record.programs][1].startswith("upcycle")
    import transformers

    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    assert saved.config.model_type == "mixtral" and saved.config.num_local_experts == 2
    ids = torch.randint(3, 90, (2, 9))
    with torch.inference_mode():
        want = saved(ids).logits
    assert torch.allclose(
        moec.load(tmp_path / "engine")(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"], want, atol=1e-4
    )


def test_bench_times_engines_and_folders(engine: Path) -> None:
    result = moec.bench([engine, moec.load(engine)], runs=2, sizes={"sequence": 4})
    assert [t.runs for t in result.timings] == [2, 2] and result.timings[0].ratio.first
    with pytest.raises(MoecError, match="no engine folder"):
        moec.bench([moec.load(engine)], eager=True)


def test_samples_take_dimensions_of_any_name(tmp_path: Path) -> None:
    batch = torch.export.Dim("rows")
    torch.export.save(
        torch.export.export(nn.Linear(4, 2), (torch.randn(3, 4),), dynamic_shapes={"input": {0: batch}}),
        tmp_path / "model.pt2",
    )
    assert moec.compile(tmp_path / "model.pt2", out=tmp_path / "engine").ok
    assert api.sample(tmp_path / "engine", trust_remote_code=True)["input"].shape == (2, 4)


def test_a_source_is_a_model_too(tmp_path: Path) -> None:
    source = source_of(MoeModel())
    assert moec.compile(source, out=tmp_path / "engine").ok
    assert moec.inspect(source).blocks and api.read_report(tmp_path / "engine").ok


def test_public_names_exist_and_no_others() -> None:
    assert all(getattr(moec, name) for name in moec.__all__)
    with pytest.raises(AttributeError, match="compil"):
        moec.compil  # noqa: B018
