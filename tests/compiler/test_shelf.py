"""Engines in a folder, and what two of them differ in."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from moec.compiler.shelf import Difference, differences, engines_in
from moec.errors import MoecError
from moec.report.artefacts import size_bytes
from moec.report.report import Report


def test_engines_are_found_below_and_links_are_not_followed(mixtral_engine: Path, tmp_path: Path) -> None:
    shutil.copytree(mixtral_engine, tmp_path / "b" / "cpu")
    (tmp_path / "a").symlink_to(mixtral_engine)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "moec.json").write_text("{")
    os.utime(tmp_path / "b" / "cpu" / "moec.json", (0, 0))
    right, broken = engines_in(tmp_path)
    assert right.folder == tmp_path / "b" / "cpu" and right.verdict == "verified" and right.age_s > 1e9
    assert right.size_bytes == size_bytes(Report.read(mixtral_engine / "moec.json").artefacts)
    assert broken.target == "" and "not a report" in broken.verdict and broken.deviation is None


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="no such folder"):
        engines_in(tmp_path / "nowhere")


def test_what_differs(mixtral_engine: Path) -> None:
    report = Report.read(mixtral_engine / "moec.json")
    assert differences(report, report) == []
    other = replace(
        report, settings={**report.settings, "threads": 2}, environment={**report.environment, "torch": "9"}
    )
    found = differences(report, other)
    assert found == [
        Difference("setting threads", None, 2),
        Difference("version torch", report.environment["torch"], "9"),
    ]
