"""An engine that exists already: prove it again, or find where its making departs from the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moec.compiler.made import Made
from moec.compiler.open import open_source
from moec.compiler.proving import reference_of
from moec.compiler.staging import MANIFEST
from moec.layouts import model_folder
from moec.pipeline.hooks import KeepHook
from moec.proof.bisection import Divergence, bisect
from moec.proof.compare import compare
from moec.proof.decided_tokens import Kept, is_half
from moec.proof.examination import examine
from moec.proof.inputs import reach_decided, reach_experts, verification_sizes
from moec.proof.quality import Exam, Quality
from moec.proof.verification import Verification, verify
from moec.text.corpus import corpus_of


def prove_again(
    folder: Path, against: Any, seed: int, tolerance: float | None, opening: Mapping[str, Any], exam: Exam | None = None
) -> Verification:
    """Compare an engine with its source (`against` None), with another engine's folder, or with another model; with an
    exam, on its text too."""
    made = Made(folder, opening)
    if _is_engine(against):
        return _prove_engines(made, Made(Path(against), opening), seed, tolerance, exam)
    source = made.source() if against is None else open_source(against, **opening)
    corpus = corpus_of(exam.text, source, model_folder(folder)) if exam else None
    captured, program = made.remake(source if against is None else made.source())
    reference, prepack = reference_of(source, captured, made.report.verify)
    engine = made.engine(prepack)
    try:
        proof = verify(
            source,
            engine,
            program,
            made.tolerance(tolerance, program.approximate),
            seed,
            reference,
            made.rounding(program),
        )
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
            comparison, coverage, decided = (
                compare(second, first, found.samples, tolerated, found.kept),
                found.coverage,
                found.decided,
            )
        quality: Quality | None = None
        if exam is not None and corpus is not None:
            quality = examine(
                made.budget(exam), corpus, source, second, first, other.remake(other.source())[1], program
            )
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
