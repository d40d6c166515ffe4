"""Engines are finished where the target's runtime is, or left exactly as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec import api
from moec.compiler.engine_folder import options_of
from moec.compiler.finish import copy_artefacts
from moec.compiler.options import Options
from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from moec.report.artefacts import hash_artefacts
from moec.targets.target import Target


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
    assert hash_artefacts(tmp_path) == report.artefacts
