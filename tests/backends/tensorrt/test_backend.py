"""The targets as a user meets them: refusals before any work, engines that are finished elsewhere, and what is said of
spoiled ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from moec import api, registry
from moec.backends.tensorrt.edition import RTX, TENSORRT
from moec.backends.tensorrt.gpu import find_gpu
from moec.backends.tensorrt.session.engine import FACTS_FILE
from moec.errors import MoecError
from moec.kernels.dispatch import has_triton
from moec.pipeline.passes import Context
from moec.report.artefacts import hash_artefacts
from moec.report.page import markdown
from moec.targets.backend import Backend
from moec.targets.target import Target
from tests.backends.tensorrt.tiny import needs_rtx
from tests.cli.test_bad_input import assert_three_lines, moec

MODEL = """
import torch
def make():
    torch.manual_seed(0)
    layers = torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32)
    return torch.nn.Sequential(torch.nn.Embedding(96, 32), *layers)
"""
INPUTS = ("--input", "input=batch,sequence:int64<96")
without_tensorrt = pytest.mark.skipif(TENSORRT.version() is not None, reason="TensorRT is installed")
needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed")
without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.py"
    path.write_text(MODEL)
    return f"{path}:make"


@pytest.fixture(scope="module")
def unbuilt(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbuilt") / "engine"
    api.compile(model, inputs=[INPUTS[1]], out=out, target="tensorrt:sm90,precision=fp16,max_sequence=64", build=False)
    return out


@pytest.fixture(scope="module")
def built(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "engine"
    api.compile(model, inputs=[INPUTS[1]], out=out, target="tensorrt-rtx:sm86,sm120,max_sequence=64")
    return out


def copy(engine: Path, folder: Path) -> Path:
    return Path(shutil.copytree(engine, folder / "engine"))


def accept(engine: Path) -> None:
    """Write the hashes of the files as they are into the manifest."""
    manifest = json.loads((engine / "moec.json").read_text())
    manifest["artefacts"] = [dataclasses.asdict(artefact) for artefact in hash_artefacts(engine)]
    (engine / "moec.json").write_text(json.dumps(manifest))


# ---------------------------------------------------------------------- before any work
@without_tensorrt
def test_without_the_library_nothing_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, err = moec(
        capsys, "compile", tmp_path / "there is no such model", "-o", tmp_path / "engine", "--target", "tensorrt:sm90"
    )
    assert status == 3
    assert_three_lines(err, "M301")
    assert "pip install 'moec[tensorrt]'" in err and "--no-build" in err and not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("tensorrt-rtx:sm90", "builds no engine for 'sm90'"),
        ("tensorrt-rtx:sm86,sm100", "builds no engine for 'sm100'"),
        ("tensorrt:sm61", "builds no engine for 'sm61'"),
        ("tensorrt:cuda", "builds no engine for 'cuda'"),
        ("tensorrt:sm80,sm90", "a plan is for one architecture"),
        ("tensorrt:precision=int3", "no option precision=int3"),
        ("tensorrt-rtx:precision=bf16", "bfloat16 could not be proven"),
        ("tensorrt:max_batch=0", "no option max_batch=0"),
        ("tensorrt:max_batch=many", "no option max_batch=many"),
        ("tensorrt:workspace=-1", "no option workspace=-1"),
        ("tensorrt:lowering=magic", "no option lowering=magic"),
        ("tensorrt:cache=elastic", "no option cache=elastic"),
        ("tensorrt-rtx:timing_cache=keep", "no timing cache"),
    ],
)
def test_a_target_that_cannot_be(target: str, reason: str) -> None:
    goal = Target.parse(target)
    backend: Backend = registry.find("backends", goal.backend)()
    assert reason in " ".join(refusal.reason for refusal in backend.options(goal))


def test_a_refused_architecture_ends_the_command(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = moec(
        capsys, "compile", model, *INPUTS, "-o", tmp_path / "engine", "--target", "tensorrt:sm61", "--no-build"
    )
    assert status == 2 and "sm90" in err
    assert_three_lines(err, "M208")


def test_targets_that_can_be() -> None:
    for target in (
        "tensorrt",
        "tensorrt:sm100,precision=fp16,max_batch=4,workspace=512,lowering=dense",
        "tensorrt-rtx:sm75,sm80,sm86,sm89,sm120,sm121",
        "tensorrt:sm90,cache=growing,refit=yes,weight_streaming=yes,verbosity=detailed,timing_cache=none",
    ):
        goal = Target.parse(target)
        assert registry.find("backends", goal.backend)().options(goal) == []


def test_dimensions_are_those_of_the_model(model: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="no dynamic dimension 'width'") as caught:
        api.compile(model, inputs=[INPUTS[1]], out=tmp_path / "engine", target="tensorrt:max_width=4", build=False)
    assert caught.value.code == "M208" and "batch, sequence" in caught.value.fix and not (tmp_path / "engine").exists()


def test_layouts_of_other_clients_are_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="cannot run this engine") as caught:
        api.compile(
            model, inputs=[INPUTS[1]], out=tmp_path / "engine", target="tensorrt:sm90", build=False, layout="genai"
        )
    assert caught.value.code == "M208"


REFUSED = {
    "tensorrt:sm90,lowering=native": "'native' cannot be had",
    "tensorrt:sm90,workspace=1": "more than the",
    "tensorrt:sm100,lowering=kernels": "'kernels' cannot be had",
    "tensorrt-rtx:sm86,lowering=kernels": "takes no plugins",
}


def test_blocks_that_get_no_lowering_are_refused_before_the_build(mixtral: Path) -> None:
    found = lambda target: registry.find("backends", target.backend)()  # noqa: E731
    allowed = [
        Target.parse("tensorrt:sm90"),
        *([Target.parse("tensorrt:sm90,lowering=kernels")] if has_triton() else []),
    ]
    program, _ = found(allowed[0]).legalize(allowed[0]).run(api.open_source(str(mixtral)).capture(), Context(), [])
    for text, reason in REFUSED.items():
        target = Target.parse(text)
        refused = found(target).supports(program, target)
        assert [reason in refusal.reason for refusal in refused] == [True, True] and all(
            refusal.fix for refusal in refused
        )
    assert [found(target).supports(program, target) for target in allowed] == [[]] * len(allowed)


# ---------------------------------------------------------------------- built elsewhere
@needs_triton
def test_kernels_are_compiled_where_the_graph_is_written(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engine"
    report = api.compile(
        str(mixtral), out=out, target="tensorrt:sm90,precision=fp16,lowering=kernels,max_sequence=64", build=False
    )
    assert (
        report.ok
        and [b["formulation"] for b in report.facts["blocks"]] == ["kernels", "kernels"]
        and report.facts["verified_by"] == "onnxruntime"
    )
    blocks = json.loads((out / FACTS_FILE).read_text())["kernels"]
    files = {step["ptx"] for block in blocks for step in block["steps"]}
    assert (
        {a.name for a in report.artefacts if a.name.endswith(".ptx")}
        == files
        == {row["file"] for row in report.facts["kernels"]}
    )
    assert [len(block["steps"]) for block in blocks] == [5, 5] and len(files) == 5, "both layers have the same sizes"
    assert all(".target sm_90a" in (out / file).read_text() for file in files)
    assert moec(capsys, "inspect", out)[0] == 0 and "rows_in_kernel" in markdown(report)
    assert report.facts["cache"][0]["capacity"] == json.loads((out / FACTS_FILE).read_text())["capacity"] == 4096 + 64
    assert [p["view"] for p in report.facts["profiles"]] == ["1 … 1040 … 4160", "1 … 16 … 4160"]
    (out / min(files)).write_text("")
    with pytest.raises(MoecError, match=r"\.ptx has 0 bytes"):
        api.verify(out)


def test_what_no_build_writes(unbuilt: Path) -> None:
    report = api.read_report(unbuilt)
    assert (
        report.ok
        and not report.built
        and report.facts["verified_by"] == "onnxruntime"
        and "onnxruntime-gpu" in report.environment
    )
    assert not (unbuilt / "model.plan").exists() and (unbuilt / "model.onnx").exists()
    assert [p["sequence"] for p in report.facts["profiles"]] == ["1 … 16 … 64"] * 2
    assert api.verify(unbuilt, trust_remote_code=True).ok


@without_tensorrt
def test_it_is_finished_only_where_the_library_is(
    unbuilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((p.name, p.stat().st_mtime_ns) for p in unbuilt.iterdir())
    for command in ("build", "run", "bench"):
        status, err = moec(capsys, command, unbuilt)
        assert status == 3
        assert_three_lines(err, "M301")
        assert "pip install 'moec[tensorrt]'" in err and "--no-build" not in err, "it was written so already"
    assert sorted((p.name, p.stat().st_mtime_ns) for p in unbuilt.iterdir()) == before


def test_a_wrong_unbuilt_engine_is_found_out(unbuilt: Path, tmp_path: Path) -> None:
    engine = copy(unbuilt, tmp_path)
    data = bytearray((engine / "model.onnx.data").read_bytes())
    data[:2048] = bytes(2048)
    (engine / "model.onnx.data").write_bytes(data)
    with pytest.raises(MoecError, match="was changed") as caught:
        api.verify(engine)
    assert caught.value.code == "M106"
    accept(engine)
    assert not api.verify(engine, trust_remote_code=True).ok


# ---------------------------------------------------------------------- built here
@needs_rtx
class TestBuilt:
    """With TensorRT-RTX, which needs no GPU."""

    def test_the_manifest_says_what_was_built_and_who_ran_it(
        self, built: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = api.read_report(built)
        assert (
            report.built
            and report.facts["engine"][0]["architectures"] == "sm86, sm120"
            and "model.plan" in {a.name for a in report.artefacts}
        )
        assert report.facts["verified_by"] == ("onnxruntime" if find_gpu() is None else report.target)
        assert moec(capsys, "inspect", built)[0] == 0
        text = markdown(report)
        assert (
            "matrix_multiply | 2" in text
            and "| single | 1 | 1 … 16 … 64 |" in text
            and f"TensorRT-RTX {RTX.version()}" in text
        )

    def test_finishing_later_makes_the_same_engine(
        self, model: str, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        engine = tmp_path / "engine"
        api.compile(
            model, inputs=[INPUTS[1]], out=engine, target="tensorrt-rtx:sm86,sm120,max_sequence=64", build=False
        )
        assert not (engine / "model.plan").exists()
        assert moec(capsys, "build", engine, "--quiet", "--trust-remote-code")[0] == 0 and api.read_report(engine).built
        files = lambda folder: {a.name: a.sha256 for a in api.read_report(folder).artefacts}  # noqa: E731
        assert files(engine) == files(built)
        assert api.verify(engine, trust_remote_code=True).ok

    def test_a_failed_build_leaves_the_engine_as_it_was(self, built: Path, tmp_path: Path) -> None:
        engine = copy(built, tmp_path)
        facts = json.loads((engine / FACTS_FILE).read_text())
        facts["profiles"][0]["shapes"]["input"][0] = [99, 99]
        (engine / FACTS_FILE).write_text(json.dumps(facts))
        accept(engine)
        before = {p.name: p.read_bytes() for p in engine.iterdir()}
        with pytest.raises(MoecError, match="profile 'single' is not accepted"):
            api.build(engine, trust_remote_code=True)
        assert {p.name: p.read_bytes() for p in engine.iterdir()} == before and [
            p.name for p in tmp_path.iterdir()
        ] == ["engine"]

    @without_gpu
    def test_it_runs_on_a_gpu_only(self, built: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, err = moec(capsys, "run", built)
        assert status == 3 and "moec verify" in err
        assert_three_lines(err, "M302")

    def test_a_truncated_plan(self, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        plan = copy(built, tmp_path) / "model.plan"
        plan.write_bytes(plan.read_bytes()[:-100])
        status, err = moec(capsys, "run", tmp_path / "engine")
        assert status == 1 and "model.plan has" in err
        assert_three_lines(err, "M106")

    def test_an_engine_of_another_version(
        self, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        engine = copy(built, tmp_path)
        old, facts = (engine / FACTS_FILE).read_text(), str(RTX.version())
        (engine / FACTS_FILE).write_text(old.replace(facts, "1.0." + facts[4:]))
        accept(engine)
        status, err = moec(capsys, "run", engine)
        assert status == 3 and "1.0." in err and "moec build" in err
        assert_three_lines(err, "M301")


def test_what_the_capture_assumed_stands_beside_the_plan_and_in_its_graph(unbuilt: Path) -> None:
    facts = json.loads((unbuilt / FACTS_FILE).read_text())
    assert facts["assumptions"] == {"sizes": [], "values": [["input", 0, 95]]}
    target = Target.parse("tensorrt:sm90")
    backend: Backend = registry.find("backends", "tensorrt")()
    engine = backend.load(unbuilt, backend.stand_in(target, built=False) or target)
    assert engine(input=torch.tensor([[0, 95]]))
    for sizes, held in (({"batch": 8}, True), ({"batch": 9}, False)):  # the end of the plan's profiles
        assert engine.holds(sizes) is held
    for token in (-1, 96):
        with pytest.raises(MoecError) as caught:
            engine(input=torch.tensor([[5, token]]))
        assert caught.value.code == "M214"
