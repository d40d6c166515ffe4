"""The first day's stages of ONNX Runtime, here on the CPU and on the stand-in for CUDA's libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import moec
from tests import zoo
from tests.first_day.day import rows_of


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two engines as they travel: one block of experts, judged as float32 and as half precision."""
    from first_day_graphs import Facts, pack, strip
    from moe_gpu_contestants import TOYS, Block, Module

    from tests.cuda_stand_in.engines import lower

    block, work = Module(Block(TOYS["mixtral"], 16, "cpu", torch.float32)), tmp_path_factory.mktemp("engines")
    program = moec.capture(block, {"x": torch.zeros(3, 64)}, dynamic={"x": ("tokens", None)})
    made = [work / "mixtral-fp32", work / "mixtral-fp16"]
    lower(program, "fp32", made[0])
    shutil.copytree(made[0], made[1])
    for folder in made:
        form = folder.name.removeprefix("mixtral-")
        strip(folder, Facts(f"mixtral/{form}", f"onnxruntime:cuda,precision={form}"))
    return pack(made, work / "bundle").parent


def test_engines_travel_without_their_weights(bundle: Path, tmp_path: Path) -> None:
    """The weights are drawn anew, the same each time, and the engine still computes."""
    from first_day_calls import inputs_of
    from first_day_engines import opened
    from first_day_graphs import DATA, fill, unpack

    assert (bundle / "engines.tar.xz").stat().st_size < 40_000
    data = []
    for place in (tmp_path / "a", tmp_path / "b"):
        folder = unpack([bundle], place)[1]
        assert not (folder / DATA).exists()
        fill(folder)
        data.append((folder / DATA).read_bytes())
    assert data[0] == data[1] and folder.name == "mixtral-fp32" and len(set(data[0])) > 200
    engine = opened(folder, "onnxruntime:cpu")
    (out,) = engine.run(inputs_of(engine, 5, 0, 0)).values()
    assert out.shape == (5, 64) and out.isfinite().all() and out.std() > 0.01


@pytest.mark.parametrize(("form", "bits"), [("fp32", 10), ("fp16", 2)])
def test_a_wrong_engine_ends_the_stage_with_the_number(bundle: Path, tmp_path: Path, form: str, bits: int) -> None:
    """The engine on the device has weights with fewer bits of mantissa: as many as TF32 has, or two."""
    import numpy as np
    from first_day_engines import engines, opened
    from first_day_graphs import DATA, Facts
    from first_day_rows import run

    def spoiled(folder: Path, target: str) -> Any:
        if folder.name.endswith(form):
            folder = Path(shutil.copytree(folder, folder.with_suffix(".spoiled")))
            data = np.memmap(folder / DATA, np.uint8, "r+")
            for offset, length, *_ in Facts.read(folder).drawn:
                data[offset : offset + length].view(np.int32)[:] &= -(2 ** (23 - bits))
            data.flush()
        return opened(folder, target)

    assert run(rows_of(tmp_path / "right"), lambda rows: engines(rows, "cpu", True, [bundle])) == ("done", "")
    state, reason = run(rows_of(tmp_path), lambda rows: engines(rows, "cpu", True, [bundle], spoiled))
    assert state == "wrong" and reason.startswith(f"stage: mixtral/{form}: a prompt: ")


def test_attention_is_held_against_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import first_day_runtime
    from first_day_rows import run

    rows = rows_of(tmp_path / "right")
    assert run(rows, lambda rows: first_day_runtime.attention(rows, "cpu", True)) == ("done", "")
    assert len(rows.done) == 2
    exact = first_day_runtime.exact_attention
    monkeypatch.setattr(first_day_runtime, "exact_attention", lambda *given: exact(*given) * 1.01)
    state, reason = run(rows_of(tmp_path), lambda rows: first_day_runtime.attention(rows, "cpu", True))
    assert state == "wrong" and "attention of 64 tokens without a bias: GroupQueryAttention" in reason


def test_a_profiler_s_trace_is_counted(tmp_path: Path) -> None:
    """What PyTorch writes for the CPU has no kernels; a GPU's events have these categories and names."""
    from first_day_runtime import of_trace

    with torch.profiler.profile() as seen:
        torch.ones(3) + 1
    seen.export_chrome_trace(str(tmp_path / "trace.json"))
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert len(trace["traceEvents"]) > 1 and of_trace(trace) == {"launches": 0, "kernels": {}}
    trace["traceEvents"] += [
        {"ph": "X", "cat": "kernel", "name": "gemm", "args": {"grid": [1, 1, 1]}},
        {"ph": "X", "cat": "kernel", "name": "gemm", "args": {"grid": [2, 1, 1]}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)", "args": {"bytes": 8}},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "args": {"bytes": 100}},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel"},
    ]
    counted = {"copies to device": 1, "bytes to device": 8, "copies to host": 1, "bytes to host": 100}
    assert of_trace(trace) == {"launches": 2, **counted, "kernels": {"gemm": 2}}


@pytest.mark.repeats
def test_launches_and_memory_on_the_stand_in(tmp_path: Path) -> None:
    """The stand-in is asked twice, as it is where bundles are made and here, and says the same."""
    from first_day_engines import make_engine
    from first_day_graphs import Facts, pack, unpack
    from first_day_rows import run
    from first_day_runtime import launches, memory

    made = make_engine(zoo.captured("mixtral"), "mixtral/fp32", "fp32", tmp_path)
    assert made is not None
    foretold = Facts.read(made).expected
    if not foretold:
        pytest.skip("the stand-in cannot be built here")
    pack([made], tmp_path / "bundle")
    rows = rows_of(tmp_path)

    def work(rows: Any) -> None:
        folders = {"mixtral/int4": unpack([tmp_path / "bundle"], tmp_path / "x")[0]}
        launches(rows, "cpu", folders)
        memory(rows, "cpu", folders)

    assert run(rows, work) == ("done", "")
    assert foretold["step"]["launches"] == next(r["value"] for r in rows.rows if r["unit"] == "launches") > 0
    assert all(r["value"] == 0 for r in rows.rows if "less than foretold" in r["who"])
    assert next(r for r in rows.rows if r["who"] == "held on the device")["times"] >= 1
