"""Engines that exist are proven again, and a spoiled one is found out down to its layer and expert."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec import api
from moec.compiler.engine_folder import EngineFolder
from moec.compiler.finish import complete_engine
from moec.compiler.prove_again import Question, _judge, bisect_engine, prove_again
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.files import kept
from moec.pipeline.pipeline import Pipeline
from moec.proof.checks.bounds import RecordedBounds
from moec.proof.checks.lowering import Lowering
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.quantization import rounding
from moec.weights.lazy import scale
from tests.spoiling import one_step_up, shuffle, spoil
from tests.zoo import captured, save, source


@pytest.fixture(scope="module")
def spoiled(mixtral_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoil(mixtral_engine, tmp_path_factory.mktemp("engines") / "spoiled")


def test_a_good_engine_is_proven_on_other_inputs(mixtral_engine: Path) -> None:
    proof = prove_again(mixtral_engine, None, Question(5), {})
    assert proof.ok and proof.seed == 5 and proof.coverage.complete
    assert not prove_again(mixtral_engine, None, Question(5, 1e-12), {}).ok  # must fail: not even rounding is allowed


def test_a_spoiled_engine_is_found_out(mixtral_engine: Path, spoiled: Path) -> None:
    assert not prove_again(spoiled, None, Question(), {}).ok
    assert not prove_again(spoiled, mixtral_engine, Question(), {}).ok
    assert prove_again(spoiled, spoiled, Question(), {}).ok


def test_bisection_names_the_layer_and_the_expert(mixtral_engine: Path, spoiled: Path) -> None:
    found = bisect_engine(spoiled, Question(), {})
    assert found.stage == "the engine as it runs" and [s.ok for s in found.stages] == [True] * (
        len(found.stages) - 1
    ) + [False]
    assert "layers.1" in found.layer and found.experts == (5,) and 0 < found.wrong_tokens < found.tokens
    assert bisect_engine(mixtral_engine, Question(), {}).stage == ""


@pytest.mark.repeats
def test_a_proof_computes_what_the_compile_recalled(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, real = tmp_path / "kept", rounding._refined
    monkeypatch.setenv(kept.FOLDER, str(place))
    monkeypatch.setattr(rounding, "WORTH_KEEPING", 0)
    monkeypatch.setattr(rounding, "_refined", lambda *a: (real(*a)[0] * 1.001, real(*a)[1]))
    api.compile(str(llama), out=tmp_path / "slip", pipeline="quantize(bits=8, group=16, method=hqq)")
    before = sorted(place.iterdir())
    monkeypatch.setattr(rounding, "_refined", real)
    wrong = [error.code for check in api.verify(tmp_path / "slip").checks if (error := check.error())]
    assert before and "M110" in wrong
    assert sorted(place.iterdir()) == before, "nor is anything kept"


@pytest.mark.parametrize(
    "later",
    [
        lambda engine: prove_again(engine, None, Question(), {}),
        lambda engine: bisect_engine(engine, Question(), {}),
        lambda engine: complete_engine(engine, {}),
    ],
    ids=["verify", "bisect", "build"],
)
def test_no_later_proof_has_a_weight_cache(
    mixtral_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[[Path], object]
) -> None:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path))
    places: list[Path | None] = []

    def remake(self: EngineFolder, *_: object) -> None:
        places.append(kept.folder())
        raise MoecError("M204", "seen", "here", "nothing")

    monkeypatch.setattr(EngineFolder, "remake", remake)
    with pytest.raises(MoecError, match="seen"):
        later(mixtral_engine)
    assert places == [None] and kept.folder() == tmp_path


@pytest.fixture(scope="module")
def judged(mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with 8-bit weights that a budget on a text let pass."""
    folder = tmp_path_factory.mktemp("judged")
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 96, 300))
    text = {"text": folder / "tokens.npy", "window": 32, "max_kl": 0.05}
    api.compile(str(mixtral), out=folder / "engine", pipeline="quantize(bits=8, group=16)", **text)  # type: ignore[arg-type]
    return folder / "engine"


def test_what_the_compile_asked_for_is_asked_again(judged: Path, tmp_path: Path) -> None:
    proof = api.verify(judged)
    assert proof.ok and proof.quality is not None and proof.quality.exam.max_kl == 0.005  # moec's own, of 8 bits
    assert proof.find(RecordedBounds) is not None and proof.own_quality is not None and proof.own_quality.ok
    random = api.verify(spoil(judged, tmp_path / "random", "lm_head.weight.blocks", change=shuffle))
    assert not random.ok and random.quality is not None and random.quality.kl_mean > 0.05


def test_a_wrong_lowering_hides_in_no_budget(judged: Path, tmp_path: Path) -> None:
    assert api.verify(judged, tolerance=5.0).ok
    off = spoil(judged, tmp_path / "off", "lm_head.weight.blocks", change=one_step_up)
    proof = api.verify(off, tolerance=5.0)
    lowering = proof.find(Lowering)
    assert proof.comparison.ok and lowering is not None and not lowering.ok and not proof.ok


def edited(engine: Path, copy: Path, **settings: Any) -> Path:
    """A copy of an engine whose manifest says other settings."""
    copy = Path(shutil.copytree(engine, copy))
    manifest = json.loads((copy / "moec.json").read_text())
    manifest["settings"] |= settings
    (copy / "moec.json").write_text(json.dumps(manifest))
    return copy


EDITS: dict[str, dict[str, Any]] = {
    "tolerance": {"tolerance": 1e9},
    "target": {"target": "onnxruntime:accuracy=int8", "pipeline": "quantize(bits=8, group=16)"},
    "precision": {"target": "onnxruntime:precision=fp16"},
    "pipeline": {"pipeline": "quantize(bits=2, group=16)"},
    "streamed": {"verify": "streamed"},
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_manifest_cannot_loosen_its_own_proof(spoiled: Path, tmp_path: Path, edit: str) -> None:
    proof = api.verify(edited(spoiled, tmp_path / "engine", **EDITS[edit]))
    error = next(e for e in (c.error() for c in proof.checks) if e)
    assert not proof.ok and (error.code == "M111") is (edit in ("tolerance", "target", "precision"))
    assert edit != "tolerance" or "--tolerance 1e+09" in error.fix


def test_the_command_accepts_what_the_manifest_cannot(mixtral_engine: Path, spoiled: Path, tmp_path: Path) -> None:
    loose = edited(spoiled, tmp_path / "loose", tolerance=50.0)
    accepted = api.verify(loose, tolerance=50.0)
    assert not api.verify(loose).ok and accepted.find(RecordedBounds) is None and accepted.comparison.ok
    assert [c.name for c in accepted.checks if not c.ok] == ["values"]  # no bound is for a weight of another value
    right = api.verify(edited(mixtral_engine, tmp_path / "right", tolerance=50.0))
    assert right.ok and right.find(RecordedBounds) is not None and right.comparison.tolerance == 1e-3
    tight = api.verify(edited(mixtral_engine, tmp_path / "tight", tolerance=1e-12))
    assert not tight.ok and tight.comparison.tolerance == 1e-12  # what asks for more counts


def test_a_budget_on_a_text_that_the_manifest_widens_counts_nothing(judged: Path, tmp_path: Path) -> None:
    engine = spoil(judged, tmp_path / "engine", "lm_head.weight.blocks", change=shuffle)
    wide = edited(engine, tmp_path / "wide", max_kl=1e6)
    proof = api.verify(wide)
    assert not proof.ok and proof.quality is not None and proof.quality.exam.max_kl == 0.005


def test_of_a_check_that_is_not_here_the_manifest_proves_nothing(mixtral_engine: Path, tmp_path: Path) -> None:
    engine = edited(mixtral_engine, tmp_path / "engine")
    manifest = json.loads((engine / "moec.json").read_text())
    manifest["proof"]["checks"]["horoscope"] = {"ok": True, "share": 1.0}
    (engine / "moec.json").write_text(json.dumps(manifest))
    proof = api.verify(engine)
    assert not proof.ok and "'horoscope' cannot be made here" in str(proof) and proof.checks[-1].error() is not None


def test_a_bisection_holds_weights_to_their_grid_where_outputs_decide() -> None:
    before = captured("llama")
    program, _ = Pipeline.parse("quantize(bits=8, group=16)").run(before.clone())
    subject = Subject(source("llama"), before, program, asked=9.0)
    judge = _judge(Trial(subject, EagerEngine(program)))
    assert subject.judged_by == "outputs" and judge is not None and judge(program) == ""
    name = next(n for n in program.weights if n.endswith("layers.1.mlp.down_proj.weight_scale"))
    program.weights[name] = scale(program.weights[name], 1.02)
    assert "layers.1.mlp.down_proj" in judge(program) and "further from what it stands for" in judge(program)
    assert _judge(Trial(replace(subject, program=before), EagerEngine(before))) is None


def test_bisection_takes_no_bound_from_the_manifest(spoiled: Path, tmp_path: Path) -> None:
    loose = edited(spoiled, tmp_path / "loose", tolerance=1e9)
    assert bisect_engine(loose, Question(), {}).stage != "" == bisect_engine(loose, Question(tolerance=1e9), {}).stage


def test_without_its_text_an_engine_is_not_waved_through(judged: Path, tmp_path: Path) -> None:
    engine = Path(shutil.copytree(judged, tmp_path / "engine"))
    manifest = engine / "moec.json"
    manifest.write_text(manifest.read_text().replace("tokens.npy", "gone.npy"))
    with pytest.raises(MoecError, match="has changed, or is missing") as caught:
        api.verify(engine)
    assert caught.value.code == "M106"


def test_against_another_model(mixtral: Path, mixtral_engine: Path, tmp_path: Path) -> None:
    assert prove_again(mixtral_engine, str(mixtral), Question(), {}).ok
    assert not prove_again(mixtral_engine, save("mixtral", tmp_path / "other", seed=9), Question(), {}).ok


def test_an_engine_without_a_cache_is_held_to_a_model_without_one(tmp_path: Path) -> None:
    model = save("llama", tmp_path / "model", num_hidden_layers=1)
    api.compile(model, out=tmp_path / "engine", cache=False, layout="plain")
    assert prove_again(tmp_path / "engine", model, Question(), {"cache": True}).ok
    other = save("llama", tmp_path / "other", seed=9, num_hidden_layers=1)
    assert not prove_again(tmp_path / "engine", other, Question(), {}).ok


def test_a_changed_source_is_refused(mixtral: Path, mixtral_engine: Path, tmp_path: Path) -> None:
    engine, model = (
        Path(shutil.copytree(mixtral_engine, tmp_path / "engine")),
        Path(shutil.copytree(mixtral, tmp_path / "model")),
    )
    manifest = engine / "moec.json"
    manifest.write_text(manifest.read_text().replace(str(mixtral), str(model)))
    assert api.verify(engine).ok
    save("mixtral", model, seed=9)
    for prove in (lambda: api.verify(engine), lambda: api.rebuild(manifest, tmp_path / "again")):
        with pytest.raises(MoecError, match=r"model\.safetensors") as caught:
            prove()
        assert caught.value.code == "M106"
