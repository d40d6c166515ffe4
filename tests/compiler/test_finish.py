"""Engines are finished where the target's runtime is, or left exactly as they were."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moec import api
from moec.cli import cli
from moec.compiler.engine_folder import options_of
from moec.compiler.finish import copy_artefacts
from moec.compiler.options import Options
from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from moec.report.artefacts import hash_artefacts, parts
from moec.targets.backend import find_backend
from moec.targets.target import Target
from tests.zoo import save


def test_the_settings_are_those_of_the_compile(mixtral_engine: Path) -> None:
    assert options_of(api.read_report(mixtral_engine)) == Options(
        Target("onnxruntime"), Pipeline.parse(""), verify="full", layout="genai"
    )


def test_what_has_nothing_to_finish_is_left_alone(mixtral: Path, mixtral_engine: Path, tmp_path: Path) -> None:
    before = sorted((p.name, p.stat().st_mtime_ns) for p in mixtral_engine.iterdir())
    with pytest.raises(MoecError, match="built already") as caught:
        api.build(mixtral_engine)
    assert caught.value.code == "M208"
    assert sorted((p.name, p.stat().st_mtime_ns) for p in mixtral_engine.iterdir()) == before
    with pytest.raises(MoecError, match="no other machine"):
        api.compile(str(mixtral), out=tmp_path / "engine", build=False)
    assert list(tmp_path.iterdir()) == []


def test_files_are_copied_as_they_are(mixtral_engine: Path, tmp_path: Path) -> None:
    report = api.read_report(mixtral_engine)
    copy_artefacts(report, mixtral_engine, tmp_path)
    assert list(hash_artefacts(tmp_path)) == parts(report.artefacts)  # the card is written anew


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of one layer with 8-bit weights that budgets on a text let pass."""
    folder = tmp_path_factory.mktemp("judged here")
    model = save("mixtral", folder / "model", num_hidden_layers=1)
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 96, 300))
    text: dict[str, Any] = {"text": folder / "tokens.npy", "window": 32, "max_kl": 0.05, "max_perplexity_ratio": 1.5}
    api.compile(model, out=folder / "engine", pipeline="quantize(bits=8, group=16)", **text)
    return folder / "engine"


@pytest.fixture
def unfinished(judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The engine as a backend leaves it that has nothing more to build here; it passes with its compile's bounds, and
    not with moec's own, which are made so narrow."""
    monkeypatch.setattr(type(find_backend(Target("onnxruntime"))), "finish", lambda *_: {})
    monkeypatch.setattr("moec.proof.budgets._BY_WIDTH", {8: (1e-12, 0.95, 0.1, 0.2)})
    return Path(shutil.copytree(judged, tmp_path / "engine"))


def change(engine: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((engine / "moec.json").read_text())
    edit(manifest)
    (engine / "moec.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("text", [False, pytest.param(True, marks=pytest.mark.repeats)])
def test_a_bound_that_the_compile_was_given_can_be_given_again(unfinished: Path, text: bool) -> None:
    without = {"max_kl": None} if text else dict.fromkeys(("text", "tokens", "window", "max_perplexity_ratio"))
    change(unfinished, lambda manifest: manifest["settings"].update(without))
    before = hash_artefacts(unfinished)
    with pytest.raises(MoecError) as caught:
        api.build(unfinished)
    flags = caught.value.fix.partition("on the command, ")[2].partition("; or")[0]
    assert caught.value.code == "M111" and ("--text" in flags) is text and hash_artefacts(unfinished) == before
    for verb in ("build", "verify"):
        assert not cli.main([verb, str(unfinished), "--quiet", *shlex.split(flags)], standalone_mode=False)  # status
    with pytest.raises(MoecError):  # must fail: not that much is allowed
        api.build(unfinished, max_kl=1e-12, **({"text": api.read_report(unfinished).settings["text"]} if text else {}))


def test_a_check_that_is_not_here_is_not_dropped(unfinished: Path) -> None:
    change(unfinished, lambda manifest: manifest["proof"]["checks"].update(horoscope={"ok": True}))
    with pytest.raises(MoecError, match="'horoscope' cannot be made here"):
        api.build(unfinished, max_kl=0.05, text=api.read_report(unfinished).settings["text"], max_perplexity_ratio=1.5)
    assert "horoscope" in (unfinished / "moec.json").read_text()


def test_bisection_takes_the_divergence_that_is_allowed(unfinished: Path) -> None:
    assert api.bisect(unfinished).stage != "" == api.bisect(unfinished, max_kl=0.05).stage
