"""An engine that exists already: prove it again, or find where its making departs from the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moec.capture.source import Source
from moec.compiler.compile import find_backend, reference_of
from moec.compiler.open import open_source
from moec.compiler.staging import MANIFEST
from moec.errors import MoecError
from moec.execution.engine import Backend, Engine
from moec.layouts import model_folder
from moec.pipeline.hooks import KeepHook
from moec.pipeline.pipeline import Context, Pipeline
from moec.program.program import Program
from moec.proof.bisection import Divergence, bisect
from moec.proof.compare import Tolerance, compare
from moec.proof.coverage import reach_decided, reach_experts, verification_sizes
from moec.proof.decided_tokens import Kept, is_half
from moec.proof.examination import allowed, calibration_of, examine, rounding
from moec.proof.quality import Exam, Quality
from moec.proof.verification import Verification, verify
from moec.report.report import Report, check_artefacts
from moec.targets.target import Target
from moec.text.corpus import corpus_of, read_calibration


class Made:
    """An engine folder with everything that its manifest says about its making."""

    def __init__(self, folder: Path, opening: Mapping[str, Any]) -> None:
        self.folder, self.report = folder, Report.read(folder / MANIFEST)
        check_artefacts(self.report, folder)
        self.target = Target.parse(self.report.target)
        self.backend: Backend = find_backend(self.target, runtime=False)
        self._opening = opening

    def source(self, model: str | None = None) -> Source:
        """The model, opened again, from another place if one is given. Raises M106 when its files are not those that the engine was made from."""
        source = open_source(model or self.report.source, **{**self._opening, **self.report.opening})
        changed = sorted(k for k in {*source.hashes, *self.report.source_hashes} if source.hashes.get(k) != self.report.source_hashes.get(k))
        if changed:
            raise MoecError("M106", f"the source has changed since: {', '.join(changed[:3])}", self.report.source, "compile it anew")
        return source

    def remake(self, source: Source, hooks: tuple[KeepHook, ...] = ()) -> tuple[Program, Program]:
        """The captured program, and the one that the engine was built from."""
        text = calibration_of(self.report)
        calibration = read_calibration(text, source, self.report.seed) if text else None
        captured, context = source.capture(self.backend.precision(self.target)), Context(seed=self.report.seed, calibration=calibration)
        program, _ = Pipeline.parse(self.report.pipeline).run(captured, context, hooks)
        program, _ = self.backend.legalize(self.target).run(program, context, hooks)
        return captured, program

    def engine(self, prepack: bool = True) -> Engine:
        """The engine, loaded; where its hardware is missing, on what stands in for it."""
        return self.backend.load(model_folder(self.folder), self.backend.stand_in(self.target, self.report.built) or self.target, prepack)

    def tolerance(self, asked: float | None, approximate: bool) -> Tolerance:
        """What was asked for now, else at the compile, else the precision's own; wider after `approximate` passes."""
        given = asked if asked is not None else self.report.tolerance_asked
        return allowed(self.backend.precision(self.target), given, self.report.quality.exam if self.report.quality else None, approximate)

    def rounding(self, program: Program) -> torch.dtype | None:
        """See `moec.proof.examination.rounding`."""
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


def prove_again(folder: Path, against: Any, seed: int, tolerance: float | None, opening: Mapping[str, Any], exam: Exam | None = None) -> Verification:
    """Compare an engine with its source (`against` None), with another engine's folder, or with another model; with an exam, on its text too."""
    made = Made(folder, opening)
    if _is_engine(against):
        return _prove_engines(made, Made(Path(against), opening), seed, tolerance, exam)
    source = made.source() if against is None else open_source(against, **opening)
    corpus = corpus_of(exam.text, source, model_folder(folder)) if exam else None
    captured, program = made.remake(source if against is None else made.source())
    reference, prepack = reference_of(source, captured, made.report.verify)
    engine = made.engine(prepack)
    try:
        proof = verify(source, engine, program, made.tolerance(tolerance, program.approximate), seed, reference, made.rounding(program))
        if exam is None or corpus is None:
            return proof
        before = captured if against is None else source.capture(made.backend.precision(made.target))
        quality = examine(made.budget(exam), corpus, source, reference or source.reference(), engine, before, program)
        return replace(proof, quality=replace(quality, engine_bytes=made.size_bytes))
    finally:
        engine.close()


def _is_engine(thing: Any) -> bool:
    return isinstance(thing, str | Path) and (Path(thing) / MANIFEST).is_file()


def _prove_engines(made: Made, other: Made, seed: int, tolerance: float | None, exam: Exam | None) -> Verification:
    source = made.source()
    corpus = corpus_of(exam.text, source, model_folder(made.folder)) if exam else None
    _, program = made.remake(source)
    samples, coverage = reach_experts(program, source, verification_sizes(source.inputs), seed)
    first, second = made.engine(), other.engine()
    try:
        tolerated, decided = made.tolerance(tolerance, program.approximate), None
        comparison = compare(second, first, samples, tolerated)
        precision = made.rounding(program)
        if not comparison.ok and is_half(precision) and coverage.loads:
            found = reach_decided(program, source, verification_sizes(source.inputs), precision, seed, full=coverage)
            comparison, coverage, decided = compare(second, first, found.samples, tolerated, found.kept), found.coverage, found.decided
        quality: Quality | None = None
        if exam is not None and corpus is not None:
            quality = examine(made.budget(exam), corpus, source, second, first, other.remake(other.source())[1], program)
            quality = replace(quality, engine_bytes=made.size_bytes, source_bytes=other.size_bytes)
    finally:
        first.close()
        second.close()
    return Verification(comparison, coverage, (), (), seed, quality=quality, decided=decided)


def bisect_engine(folder: Path, seed: int, opening: Mapping[str, Any]) -> Divergence:
    """The first pass, layer and expert at which an engine's making departs from the untouched model."""
    made, keep = Made(folder, opening), KeepHook()
    source = made.source()
    captured, program = made.remake(source, (keep,))
    programs = keep.programs or [("capture", captured)]
    reference, prepack = reference_of(source, captured, made.report.verify)
    sizes = verification_sizes(source.inputs)[:2]
    samples, coverage = reach_experts(program, source, sizes, seed)
    engine, tolerance, precision = made.engine(prepack), made.tolerance(None, approximate=False), made.rounding(program)
    reference = reference or source.reference()
    try:
        kept: list[Kept] | None = None
        if is_half(precision) and coverage.loads:  # each stage may round differently
            found = reach_decided(program, source, sizes, precision, seed, full=coverage)
            samples, kept = (samples, None) if found.decided.problem else (found.samples, found.kept)
        return bisect(reference, programs, samples, tolerance, engine, kept)
    finally:
        engine.close()
