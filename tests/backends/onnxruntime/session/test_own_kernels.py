"""Engines with moec's own kernels: compiled, proven, opened, and refused where their library is another."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import SessionOptions

import moec
from moec import MoecError
from moec.backends.onnxruntime.experts.own_kernel import FORMULATION
from moec.backends.onnxruntime.session.own_kernels import register, require_same
from moec.kernels.cpu.building import LIBRARY, stamp
from moec.kernels.cpu.library import PLACE, way_out
from moec.layouts.facts import OPERATORS
from moec.report.clients import RUNTIME, client_code
from moec.report.report import Report
from tests.command_line import Cli
from tests.zoo import save

TARGET = "onnxruntime:kernels=moec"


@pytest.fixture(scope="module")
def engine(cpu_kernels_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACE, str(cpu_kernels_file))
        moec.compile(save("qwen3_moe", folder / "qwen3_moe"), out=folder / "engine", target=TARGET)
    return folder / "engine"


def test_it_is_proven_and_says_how_each_block_runs(engine: Path) -> None:
    report = json.loads((engine / "moec.json").read_text())
    assert {b["formulation"] for b in report["facts"]["blocks"]} == {FORMULATION}
    assert LIBRARY in [file["name"] for file in report["artefacts"]]
    options = json.loads((engine / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert options[OPERATORS] == LIBRARY and options["provider_options"] == []


def test_it_is_proven_again_and_runs(engine: Path, cpu_kernels: Path) -> None:
    assert moec.verify(engine, seed=3).ok
    assert moec.load(engine)(input_ids=torch.tensor([[5, 6, 7]]))["logits"].isfinite().all()


def test_plain_onnx_runtime_opens_it_by_the_lines_of_the_report(engine: Path) -> None:
    found: dict[str, Any] = {}
    exec(client_code(RUNTIME, Report.read(engine / "moec.json"), str(engine)), found)
    session = found["session"]
    feeds = {}
    for i in session.get_inputs():
        sizes = [d if isinstance(d, int) else 1 for d in i.shape]
        feeds[i.name] = np.zeros(sizes, np.int64 if "int64" in i.type else np.float32)
    feeds["attention_mask"] = np.ones((1, 2), np.int64)
    assert np.isfinite(session.run(["logits"], feeds)[0]).all()


def test_onnxruntime_genai_opens_it(engine: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(engine))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=8)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([[5, 6, 7]], np.int32))
    generator.generate_next_token()
    assert len(generator.get_sequence(0)) == 4


def test_another_library_is_refused_and_not_loaded(
    engine: Path, cpu_kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "libmoec_cpu.so"
    other.write_bytes(cpu_kernels.read_bytes() + b"\0")
    monkeypatch.setenv(PLACE, str(other))
    with pytest.raises(MoecError, match="another than that of this installation") as refused:
        moec.load(engine)
    assert refused.value.code == "M106"


def test_a_folder_without_its_library_is_refused(engine: Path, cpu_kernels: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(engine, tmp_path / "engine"))
    require_same(copy)
    (copy / LIBRARY).unlink()
    with pytest.raises(MoecError, match="is not in the engine's folder") as refused:
        require_same(copy)
    assert (refused.value.code, refused.value.where) == ("M106", str(copy / LIBRARY))


def test_a_library_that_does_not_load_is_a_clear_error(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    other = tmp_path / "broken.so"
    other.write_bytes(f"no library, but {stamp()}".encode())
    monkeypatch.setenv(PLACE, str(other))
    with pytest.raises(MoecError, match="do not load") as refused:
        register(SessionOptions())
    assert (refused.value.code, refused.value.where, refused.value.fix) == ("M301", str(other), way_out())
    cli("compile", mixtral, "-o", tmp_path / "again", "--target", TARGET, status=3)
    assert "do not load" in cli.err and "--out $MOEC_CPU_KERNELS" in cli.err


def test_without_the_kernels_there_is_a_way_out(
    cli: Cli, mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLACE, str(tmp_path / "none.so"))
    cli("compile", mixtral, "-o", tmp_path / "engine", "--target", TARGET, status=3)
    assert "no such file" in cli.err and "moec.kernels.cpu.building" in cli.err
    assert "kernels=moec: " in cli("doctor")


def test_cuda_has_none(cli: Cli, mixtral: Path, tmp_path: Path, cpu_kernels: Path) -> None:
    cli("compile", mixtral, "-o", tmp_path / "engine", "--target", "onnxruntime:cuda,kernels=moec", status=2)
    assert "for CPUs" in cli.err


def test_kserve_is_refused_with_the_reason_and_triton_not(
    cli: Cli, mixtral: Path, tmp_path: Path, cpu_kernels: Path
) -> None:
    cli("compile", mixtral, "-o", tmp_path / "no", "--target", TARGET, "--layout", "kserve", status=2)
    assert "library of operators is not found" in cli.err and "--layout plain or genai or triton" in cli.err
    cli("compile", mixtral, "-o", tmp_path / "engine", "--target", TARGET, "--layout", "triton")
    text = next((tmp_path / "engine").glob("*/config.pbtxt")).read_text()
    (library,) = re.findall(r'op_library_filename: ."(.*)"', text)
    assert (tmp_path / "engine" / library).is_file()  # from the working directory that `client_code` says
