"""Engines that one keeps: those in a folder with what is known of each, and what two of them differ in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moec.errors import MoecError
from moec.files.nearby import nearby
from moec.files.workplace import DEPTH
from moec.registry import did_you_mean
from moec.report.artefacts import MANIFEST, Artefact, size_bytes
from moec.report.report import Report


@dataclass(frozen=True)
class Kept:
    """An engine folder.

    Attributes:
        folder: where it lies.
        target: what it was made for; empty where its manifest cannot be read.
        verdict: as `Report.headline` begins, or why the manifest cannot be read.
        deviation: the proof's max|d|/std; None where nothing was compared.
        proven_on_target: whether the proof ran on what the engine is for; None where its manifest cannot be read.
        size_bytes: of its files, as the manifest lists them.
        age_s: seconds since the manifest was written.
    """

    folder: Path
    target: str
    verdict: str
    deviation: float | None
    size_bytes: int
    age_s: float
    proven_on_target: bool | None = None


def engines_in(folder: Path) -> list[Kept]:
    """The engines in a folder and up to `DEPTH` folders below it, by path; links are not followed.

    Raises:
        MoecError: M201 when there is no such folder.
    """
    if not folder.is_dir():
        lists = "give a folder that holds engines, or passes, targets or presets"
        fix = did_you_mean(str(folder), ["passes", "targets", "presets"], nearby(folder, lists, Path.is_dir))
        raise MoecError("M201", "no such folder", str(folder), fix)
    return [_kept(place) for place in _manifests(folder)]


def _manifests(folder: Path) -> Iterator[Path]:
    for place, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if MANIFEST in files:
            yield Path(place)
            below.clear()
        if len(Path(place).relative_to(folder).parts) == DEPTH:
            below.clear()


def _kept(place: Path) -> Kept:
    manifest, age = place / MANIFEST, 0.0
    with suppress(OSError):  # a link to nothing, or to itself: reading it says so
        age = max(time.time() - manifest.stat().st_mtime, 0.0)
    try:
        report = Report.read(manifest)
    except MoecError as error:
        return Kept(place, "", error.what, None, 0, age)
    size = size_bytes(report.artefacts)
    return Kept(place, report.target, report.verdict, _deviation(report), size, age, report.proof.proven_on_target)


def _deviation(report: Report) -> float | None:
    return max((output.deviation for output in report.comparison.outputs), default=None)


@dataclass(frozen=True)
class Difference:
    """One thing in which two engines differ: `name` (`setting target`, `version torch`, …) and both values."""

    name: str
    left: Any
    right: Any


def differences(left: Report, right: Report) -> list[Difference]:
    """What two engines differ in: model, settings, versions, passes, verdict, error, files; in this order."""
    pairs = [
        ("model", {"name": left.source, **left.source_hashes}, {"name": right.source, **right.source_hashes}),
        ("text", left.text_hashes, right.text_hashes),
        ("setting", left.settings, right.settings),
        ("version", left.environment, right.environment),
        ("pass", _passes(left), _passes(right)),
        ("proof", _proof(left), _proof(right)),
        ("file", _files(left.artefacts), _files(right.artefacts)),
    ]
    return [
        Difference(f"{kind} {key}", ours.get(key), theirs.get(key))
        for kind, ours, theirs in pairs
        for key in [*ours, *(k for k in theirs if k not in ours)]
        if ours.get(key) != theirs.get(key)
    ]


def _passes(report: Report) -> dict[str, Any]:
    return {str(step["name"]): f"{step['rewrites']} rewrites, {step['contract']}" for step in report.steps}


def _proof(report: Report) -> dict[str, Any]:
    return {
        "verdict": report.verdict,
        "max|d|/std": _deviation(report),
        "experts": str(report.coverage),
        "KL on a text": report.quality.kl_mean if report.quality else None,
    }


def _files(artefacts: tuple[Artefact, ...]) -> dict[str, Any]:
    return {item.name: f"{item.size_bytes} bytes, {item.sha256[:12]}" for item in artefacts}
