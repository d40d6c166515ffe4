"""The driver: an engine folder appears only when everything went well, and options mean what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from moec.compiler import proving
from moec.compiler.compile import compile_source
from moec.compiler.open import open_source
from moec.compiler.options import Options
from moec.compiler.shelf import engines_in
from moec.errors import MoecError
from moec.frontend.module_source import ModuleSource
from moec.pipeline.passes import Context, Contract, Pass
from moec.pipeline.pipeline import Hook, Pipeline
from moec.program.program import Program
from moec.progress import Progress
from moec.report.junit import junit
from moec.report.page import html
from moec.report.report import Report
from moec.targets.target import Target
from moec.weights.lazy import scale
from tests.moe_module import MoeModel, source_of
from tests.zoo import save

TARGET = Target("onnxruntime")


def source(seed: int = 0) -> ModuleSource:
    return source_of(MoeModel(seed=seed))


@dataclass(frozen=True)
class ScaleHead(Pass):
    """Multiplies the head's matrix: wrong by as much as a test asks for."""

    factor: float = 1.5
    approximate: bool = False

    def contract_of(self) -> Contract:
        return "approximate" if self.approximate else "exact"

    def apply(self, program: Program, context: Context) -> int:
        program.weights["head.weight"] = scale(program.weights["head.weight"], self.factor)
        return 1


class Stops(Hook):
    """Ends the compilation in the middle."""

    def after(self, step: int, item: Pass, program: Program, rewrites: int, seconds: float) -> None:
        raise KeyboardInterrupt


# ---------------------------------------------------------------------- compiling
class Stages(Progress):
    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str) -> None:
        self.names.append(name)


def test_compile_publishes_a_proven_engine(tmp_path: Path) -> None:
    stages = Stages()
    report = compile_source(source(), Options(TARGET, seed=3), tmp_path / "engine", progress=stages)
    assert report.ok and report.coverage.complete and report.coverage.total == 8
    assert stages.names == ["account", "capture", "weights", "passes", "build", "verify"]
    assert report.size is not None and report.size.active_after < report.size.parameters_after
    assert report.size.parameters == report.size.parameters_after and report.size.stored_bytes > 0
    assert report.layers is not None and [b.module for b in report.layers.blocks] == ["blocks.0", "blocks.1"]
    assert "active a token" in (tmp_path / "engine" / "report.html").read_text()
    written = json.loads((tmp_path / "engine" / "moec.json").read_text())
    settings = written["settings"]
    assert (settings["target"], settings["seed"], settings["pipeline"]) == ("onnxruntime", 3, "")
    assert {p.name for p in (tmp_path / "engine").iterdir()} == {
        "model.onnx",
        "model.onnx.data",
        "moec.json",
        "report.html",
        "README.md",
    }


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (Options(TARGET, Pipeline((ScaleHead(1.5),))), "M102"),
        (Options(TARGET, Pipeline((ScaleHead(1.5, approximate=True),)), tolerance=1e-3), "M102"),
        (Options(TARGET, Pipeline((ScaleHead(1.5),)), verify="streamed"), "M101"),
        (Options(TARGET, tolerance=1e-12), "M101"),
    ],
    ids=["exact pass that is not", "budget exceeded", "streamed: proven at the end", "tolerance below rounding"],
)
def test_a_wrong_engine_is_not_published(options: Options, code: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        compile_source(source(), options, tmp_path / "engine")
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_an_approximate_pass_within_its_budget(tmp_path: Path) -> None:
    report = compile_source(
        source(), Options(TARGET, Pipeline((ScaleHead(1.01, approximate=True),)), tolerance=0.1), tmp_path / "engine"
    )
    assert report.ok and 1e-3 < report.comparison.worst.deviation < 0.1
    assert report.steps[0]["contract"] == "approximate"


@pytest.fixture
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "tokens.npy"
    np.save(path, np.random.default_rng(0).integers(0, 50, 300))
    return str(path)


def test_a_budget_on_a_text_decides_about_approximate_passes(tokens: str, tmp_path: Path) -> None:
    wide, narrow = (
        Options(TARGET, Pipeline((ScaleHead(1.3, approximate=True),)), text=tokens, window=32, max_kl=kl)
        for kl in (1.0, 1e-4)
    )
    stages = Stages()
    report = compile_source(source(), wide, tmp_path / "engine", progress=stages)
    assert (
        stages.names[-1] == "verify" and report.ok and report.comparison.worst.deviation > 0.5
    )  # more than the default budget
    assert (
        report.quality is not None
        and 1e-4 < report.quality.kl_mean < 1
        and report.quality.engine_bytes == sum(a.size_bytes for a in report.artefacts if a.name != "README.md")
    )
    with pytest.raises(MoecError) as caught:
        compile_source(source(), narrow, tmp_path / "second")
    assert caught.value.code == "M107" and [p.name for p in tmp_path.iterdir()] == ["engine"]


def test_a_broken_budget_keeps_the_engine_that_was_there(tokens: str, tmp_path: Path) -> None:
    compile_source(source(), Options(TARGET), tmp_path / "engine")
    before = {p.name: p.read_bytes() for p in (tmp_path / "engine").iterdir()}
    with pytest.raises(MoecError, match="perplexity"):
        compile_source(source(), Options(TARGET, text=tokens, window=32, max_perplexity_ratio=0.9), tmp_path / "engine")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "engine").iterdir()}


def test_a_text_that_cannot_be_read_ends_it_before_any_work(tmp_path: Path) -> None:
    stages = Stages()
    with pytest.raises(MoecError) as caught:
        compile_source(source(), Options(TARGET, text=str(tmp_path / "gone.npy")), tmp_path / "engine", progress=stages)
    assert caught.value.code == "M211" and stages.names == [] and list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_it_is_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compile_source(
            source(), Options(TARGET, Pipeline((ScaleHead(1.0001, True),))), tmp_path / "engine", hooks=[Stops()]
        )
    assert list(tmp_path.iterdir()) == []


class Edits(Progress):
    """Somebody edits a file of the model at a stage of its compile."""

    def __init__(self, at: str, path: Path, change: Callable[[bytes], bytes]) -> None:
        self._at, self._path, self._change = at, path, change

    def stage(self, name: str) -> None:
        if name == self._at:
            self._path.write_bytes(self._change(self._path.read_bytes()))


@pytest.mark.parametrize(
    ("file", "at"),
    [
        ("config.json", "capture"),
        ("model.safetensors", "build"),
        ("model.safetensors", "verify"),
        *(
            pytest.param(*which, marks=pytest.mark.repeats)  # each file and each stage stands above
            for which in (("config.json", "build"), ("config.json", "verify"), ("model.safetensors", "capture"))
        ),
    ],
)
def test_a_model_that_changes_meanwhile_is_refused(file: str, at: str, tmp_path: Path) -> None:
    model = Path(save("llama", tmp_path / "model", num_hidden_layers=1))
    changes = {"config.json": lambda data: data.replace(b"1e-06", b"1e-05"), "model.safetensors": lambda data: data}
    edit = Edits(at, model / file, changes[file])
    with pytest.raises(MoecError, match="was changed while it was read") as caught:
        compile_source(open_source(str(model)), Options(TARGET), tmp_path / "engine", progress=edit)
    assert caught.value.code == "M106" and not (tmp_path / "engine").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is the hardware that the target names")
def test_what_has_not_run_on_its_target_is_never_called_verified(tmp_path: Path) -> None:
    report = compile_source(source(), Options(Target("onnxruntime", "cuda")), tmp_path / "engine")
    assert not report.proof.proven_on_target and report.proof.ran_on == "onnxruntime:cpu"
    said = "proven on the CPU, not yet run on onnxruntime:cuda"
    again = Report.read(tmp_path / "engine" / "moec.json")
    assert again.ok and again.headline().startswith(f"{said}: ") and "verified" not in again.headline()
    assert said[1:] in html(again) and said in str(again.proof)  # a sentence of the page begins with a capital
    assert "skipped message=" in junit("engine", again.proof) and "failure" in junit("engine", again.proof, True)
    written = json.loads((tmp_path / "engine" / "moec.json").read_text())["proof"]
    assert written["proven_on_target"] is False and written["ran_on"] == "onnxruntime:cpu"
    assert written["verdict"] == said == engines_in(tmp_path)[0].verdict
    with pytest.raises(MoecError, match=said) as caught:
        compile_source(source(), Options(Target("onnxruntime", "cuda")), tmp_path / "no", require_run=True)
    assert caught.value.code == "M113" and caught.value.exit_code == 1 and not (tmp_path / "no").exists()
    here = compile_source(source(), Options(TARGET), tmp_path / "here")
    assert here.proof.proven_on_target and here.headline().startswith("verified: ")


def test_weights_that_are_not_finite_end_it_early(tmp_path: Path) -> None:
    model = MoeModel()
    model.blocks[1].w_in.data[2, 3, 1] = torch.nan  # type: ignore[union-attr,index]
    with pytest.raises(MoecError, match=r"blocks\.1\.w_in") as caught:
        compile_source(source_of(model), Options(TARGET), tmp_path / "engine")
    assert caught.value.code == "M105"


# ---------------------------------------------------------------------- parts


def test_the_reference_is_chosen_by_size_and_not_by_what_is_free_now(monkeypatch: pytest.MonkeyPatch) -> None:
    model = source()
    captured = model.capture()
    found: dict[tuple[str, int], str] = {}
    for total in (100, 2**40):
        monkeypatch.setattr(proving, "total_bytes", lambda total=total: total)
        found |= {(how, total): proving.choose_reference(model, captured, how) for how in ("auto", "full", "streamed")}
    streamed = {key for key, reference in found.items() if reference == "streamed"}
    assert streamed == {("auto", 100), ("streamed", 100), ("streamed", 2**40)}


def test_a_checkpoint_inside_the_engine_is_refused_before_the_work(tmp_path: Path) -> None:
    progress = Stages()
    with pytest.raises(MoecError) as caught:
        compile_source(
            source(), Options(TARGET, save_hf=tmp_path / "engine" / "hf"), tmp_path / "engine", progress=progress
        )
    assert caught.value.code == "M210" and not progress.names and not any(tmp_path.iterdir())
