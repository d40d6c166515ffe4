"""An engine that exists already: prove it again, or find the step at which it departs from the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moec.compiler.engine_folder import EngineFolder
from moec.compiler.open import open_source
from moec.compiler.proving import fitting_exam
from moec.compiler.staging import MANIFEST
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.frontend.source import Source
from moec.layouts import model_folder
from moec.pipeline.hooks import RecordHook
from moec.program.program import Program
from moec.proof.bisection import Bounds, Divergence, bisect
from moec.proof.compare import Tolerance
from moec.proof.decided_tokens import is_half
from moec.proof.evidence import all_tokens, decided_tokens
from moec.proof.exam import Exam
from moec.proof.subject import Subject
from moec.proof.trial import Trial
from moec.proof.verification import Verification, prove
from moec.text.corpus import corpus_of

BISECTED_SIZES = 2  # every step of the compile is run on each input


def prove_again(
    folder: Path, against: Any, seed: int, tolerance: float | None, opening: Mapping[str, Any], exam: Exam | None = None
) -> Verification:
    """Prove an engine with the checks of its compile, on other inputs.

    Args:
        folder: what `compile` wrote.
        against: None for its own source; else another engine's folder, or another model.
        seed: of the inputs.
        tolerance: the max |d|/std that is allowed; the compile's when None.
        opening: arguments of `open_source`.
        exam: a text; the compile's own when None and `against` is None.
    """
    engine_folder = EngineFolder(folder, opening)
    own = engine_folder.source()
    captured, program = engine_folder.remake(own)
    if exam is not None or against is None:
        exam = engine_folder.exam(exam)
    if _is_engine(against):
        other = EngineFolder(Path(against), opening)
        with other.opened() as reference:
            theirs = other.remake(other.source())[1]
            subject = replace(
                engine_folder.subject(own, theirs, program), against=reference, source_bytes=other.size_bytes
            )
            return _prove(engine_folder, subject, own, seed, tolerance, exam)
    if against is None:
        return _prove(engine_folder, engine_folder.subject(own, captured, program), own, seed, tolerance, exam)
    source = open_source(against, **opening)
    before, twin = _compiled_alike(engine_folder, source)
    subject = replace(engine_folder.subject(source, before, program), twin=twin)
    return _prove(engine_folder, subject, source, seed, tolerance, exam)


def _compiled_alike(engine_folder: EngineFolder, source: Source) -> tuple[Program, Program | None]:
    """Another model's captured program, and what the engine would be built from if it were its model; None where the
    passes do not fit it."""
    try:
        return engine_folder.remake(source)
    except MoecError:  # one that cannot be captured at all says so now
        return source.capture(engine_folder.backend.precision(engine_folder.target)), None


def _prove(
    engine_folder: EngineFolder, subject: Subject, source: Source, seed: int, tolerance: float | None, exam: Exam | None
) -> Verification:
    corpus = corpus_of(exam.text, source, model_folder(engine_folder.folder)) if exam else None
    asked = subject.asked if tolerance is None else tolerance
    subject = replace(subject, seed=seed, asked=asked, exam=fitting_exam(exam, source), corpus=corpus)
    with engine_folder.opened() as engine:
        return prove(subject, engine)


def _is_engine(thing: Any) -> bool:
    return isinstance(thing, str | Path) and (Path(thing) / MANIFEST).is_file()


def bisect_engine(folder: Path, seed: int, opening: Mapping[str, Any], tolerance: float | None = None) -> Divergence:
    """The first pass or step of the lowering, layer and expert at which an engine's making departs from the untouched
    model.

    An exact step is held to the step before it, by rounding, or by what was asked for now or at the compile;
    approximate ones to their budget, all of them together. What a backend made of them is held to the last program.
    """
    engine_folder, record = EngineFolder(folder, opening), RecordHook()
    source = engine_folder.source()
    captured, program = engine_folder.remake(source, (record,))
    programs = record.programs or [("capture", captured)]
    exam = engine_folder.options.exam  # its budget may stand in the place of one on outputs
    subject = replace(engine_folder.subject(source, captured, program), seed=seed, exam=exam)
    subject = subject if tolerance is None else replace(subject, asked=tolerance)
    with engine_folder.opened() as engine:
        lowering = engine_folder.backend.stages(
            program, engine_folder.target, str(engine_folder.report.settings["optimize_for"])
        )
        return _bisect(Trial(subject, engine, BISECTED_SIZES), programs, engine, lowering)


def _bisect(
    trial: Trial, programs: list[tuple[str, Any]], engine: Engine, lowering: Iterator[tuple[str, Engine]]
) -> Divergence:
    subject, evidence = trial.subject, trial.once(all_tokens)
    if is_half(subject.precision) and evidence.coverage.loads:  # each stage may round differently
        found = trial.once(decided_tokens)
        evidence = evidence if found.decided and found.decided.problem else found
    bounds = Bounds(
        exact=subject.lowering_tolerance if subject.program.approximate else subject.tolerance or Tolerance(0.0),
        budget=subject.tolerance if subject.program.approximate else None,
        lowering=subject.lowering_tolerance if subject.program.approximate else None,
    )
    return bisect(trial.reference, programs, evidence.samples, bounds, engine, evidence.compared, lowering)
