"""A manifest is held against what is there now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moec.compiler.check import checked
from moec.files.regular import file_hash
from tests.report.test_report import make


@pytest.fixture
def model_and_engine(mixtral: Path, mixtral_engine: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies that may be changed: the manifest names the copy of the model."""
    model = Path(shutil.copytree(mixtral, tmp_path / "model"))
    engine = Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))
    manifest = engine / "moec.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "source": str(model)}))
    return model, engine


def codes(engine: Path, **wanted: Any) -> list[str]:
    return [error.code for error in checked(engine, wanted, {}).values() if error]


def test_nothing_changed(model_and_engine: tuple[Path, Path], tmp_path: Path) -> None:
    _, engine = model_and_engine
    assert codes(engine) == codes(engine / "moec.json", seed=0) == []
    alone = Path(shutil.copy(engine / "moec.json", tmp_path / "alone.json"))
    assert codes(alone) == []


def test_code_is_hashed_and_never_run(tmp_path: Path) -> None:
    """Opening `file.py:callable` imports it, so it is not opened, even where the user allows code."""
    model, ran = tmp_path / "model.py", tmp_path / "ran"
    model.write_text(f"import sizes\nopen({str(ran)!r}, 'w').close()\n")
    (tmp_path / "sizes.py").write_text("WIDTH = 3\n")
    files = {path.name: file_hash(path) for path in (model, tmp_path / "sizes.py")}
    report = replace(make(), source=f"{model}:build:inputs", source_hashes=files, text_hashes={}, artefacts=())
    (tmp_path / "moec.json").write_text(report.to_json())
    for trust in (False, True):
        assert checked(tmp_path / "moec.json", {}, {"trust_remote_code": trust})["model"] is None
    (tmp_path / "sizes.py").write_text("WIDTH = 4\n")
    changed = checked(tmp_path / "moec.json", {}, {})["model"]
    (tmp_path / "sizes.py").unlink()
    lost = checked(tmp_path / "moec.json", {}, {"trust_remote_code": True})["model"]
    assert changed and lost and changed.what == lost.what == "the source has changed since: sizes.py"
    assert (changed.code, ran.exists()) == ("M106", False)


def test_everything_changed(model_and_engine: tuple[Path, Path]) -> None:
    model, engine = model_and_engine
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_theta": 7.0}))
    (engine / "model.onnx").write_bytes(b"")
    manifest = json.loads((engine / "moec.json").read_text())
    manifest["proof"]["checks"]["outputs"]["comparison"]["outputs"][0]["deviation"] = 9.0
    (engine / "moec.json").write_text(json.dumps(manifest))
    assert codes(engine, seed=3, target="onnxruntime:cuda") == ["M101", "M106", "M106", "M112", "M112"]


def test_what_was_compared_is_named(model_and_engine: tuple[Path, Path]) -> None:
    _, engine = model_and_engine
    (engine / "model.onnx").write_bytes(b"")
    found = checked(engine, {"seed": 3, "target": "onnxruntime"}, {})
    assert list(found) == ["proof", "model", "text", "files", "setting seed", "setting target"]
    assert [name for name, error in found.items() if error] == ["files", "setting seed"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["settings"].update(target="onnxruntime:cuda"),  # and the proof's own target says onnxruntime
        lambda m: [m["proof"].pop(name) for name in ("target", "ran_on")],
    ],
)
def test_a_run_is_held_against_the_settings_and_has_to_be_there(
    model_and_engine: tuple[Path, Path], edit: Callable[[dict[str, Any]], object]
) -> None:
    _, engine = model_and_engine
    assert checked(engine, {}, {}, require_run=True)["run"] is None
    manifest = json.loads((engine / "moec.json").read_text())
    edit(manifest)
    (engine / "moec.json").write_text(json.dumps(manifest))
    error = checked(engine, {}, {}, require_run=True)["run"]
    assert error is not None and error.code == "M113" and "not yet run on onnxruntime" in error.what
