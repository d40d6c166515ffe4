"""An engine that was made before: its report, its source and its program, made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from moec.compiler.open import open_source
from moec.compiler.staging import MANIFEST
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.frontend.source import Source
from moec.layouts import model_folder
from moec.pipeline.calibration import CalibrationText
from moec.pipeline.hooks import KeepHook
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.proof.compare import Tolerance
from moec.proof.quality import Exam
from moec.proof.tolerances import allowed, rounding
from moec.report.artefacts import check_artefacts
from moec.report.report import Report
from moec.targets.backend import Backend, find_backend
from moec.targets.target import Target
from moec.text.corpus import read_calibration


class Made:
    """An engine folder with everything that its manifest says about its making."""

    def __init__(self, folder: Path, opening: Mapping[str, Any]) -> None:
        self.folder, self.report = folder, Report.read(folder / MANIFEST)
        check_artefacts(self.report.artefacts, folder)
        self.target = Target.parse(self.report.target)
        self.backend: Backend = find_backend(self.target, runtime=False)
        self._opening = opening

    def source(self, model: str | None = None) -> Source:
        """The model, opened again, from another place if one is given. Raises M106 when its files are not those that
        the engine was made from."""
        source = open_source(model or self.report.source, **{**self._opening, **self.report.opening})
        changed = sorted(
            k
            for k in {*source.hashes, *self.report.source_hashes}
            if source.hashes.get(k) != self.report.source_hashes.get(k)
        )
        if changed:
            raise MoecError(
                "M106", f"the source has changed since: {', '.join(changed[:3])}", self.report.source, "compile it anew"
            )
        return source

    def remake(self, source: Source, hooks: tuple[KeepHook, ...] = ()) -> tuple[Program, Program]:
        """The captured program, and the one that the engine was built from."""
        text = calibration_of(self.report)
        calibration = read_calibration(text, source, self.report.seed) if text else None
        captured, context = (
            source.capture(self.backend.precision(self.target)),
            Context(seed=self.report.seed, calibration=calibration),
        )
        program, _ = Pipeline.parse(self.report.pipeline).run(captured, context, hooks)
        program, _ = self.backend.legalize(self.target).run(program, context, hooks)
        return captured, program

    def engine(self, prepack: bool = True) -> Engine:
        """The engine, loaded; where its hardware is missing, on what stands in for it."""
        return self.backend.load(
            model_folder(self.folder), self.backend.stand_in(self.target, self.report.built) or self.target, prepack
        )

    def tolerance(self, asked: float | None, approximate: bool) -> Tolerance:
        """What was asked for now, else at the compile, else the precision's own; wider after `approximate` passes."""
        given = asked if asked is not None else self.report.tolerance_asked
        return allowed(
            self.backend.precision(self.target),
            given,
            self.report.quality.exam if self.report.quality else None,
            approximate,
        )

    def rounding(self, program: Program) -> torch.dtype | None:
        """See `moec.proof.tolerances.rounding`."""
        return rounding(self.backend.precision(self.target), program)

    def budget(self, exam: Exam) -> Exam:
        """An exam with the budget of the compile's, unless it sets one itself."""
        if exam.bounded or self.report.quality is None:
            return exam
        asked = self.report.quality.exam
        return replace(exam, max_kl=asked.max_kl, max_perplexity_ratio=asked.max_perplexity_ratio)

    @property
    def size_bytes(self) -> int:
        """Of the engine's files."""
        return sum(a.size_bytes for a in self.report.artefacts)


def require_same_text(file: str, digest: str, purpose: str) -> None:
    """Raise M106 when a text is not the one that an engine was judged on, or calibrated on."""
    path = Path(file)
    if not path.is_file() or sha256(path.read_bytes()).hexdigest() != digest:
        raise MoecError(
            "M106",
            f"the text that the engine was {purpose} on has changed, or is missing",
            str(path),
            "put it back, or compile anew",
        )


def calibration_of(report: Report) -> CalibrationText | None:
    """The text that an engine was calibrated on, None without one. Raises M106 when it is not the same any more."""
    if report.calibration is None:
        return None
    given = dict(report.calibration)
    require_same_text(given["file"], given.pop("sha256"), "calibrated")
    return CalibrationText(**given)
