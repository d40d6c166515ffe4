"""What the compile driver proves, with what, and against what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moec.compiler.options import Options
from moec.execution.engine import Engine
from moec.execution.memory import available_bytes
from moec.execution.streaming import StreamingEngine
from moec.frontend.source import Source
from moec.layouts import model_folder
from moec.pipeline.pipeline import Hook
from moec.program.program import Program
from moec.proof.compare import Tolerance
from moec.proof.contract import VerifyHook
from moec.proof.examination import examine
from moec.proof.inputs import verification_sizes
from moec.proof.quality import Exam, Quality
from moec.proof.tolerances import allowed, rounding
from moec.proof.verification import Verification, verify
from moec.report.artefacts import hash_artefacts
from moec.targets.backend import Backend
from moec.targets.target import Target
from moec.text.corpus import Corpus


def runner(backend: Backend, options: Options) -> Target:
    """What runs the engine for the proof."""
    return backend.stand_in(options.target, options.build) or options.target


def contract_checks(source: Source, captured: Program, options: Options, backend: Backend) -> list[Hook]:
    """Every pass is held to its contract on one small input; a model that does not fit into memory is proven at the end
    only."""
    if reference_of(source, captured, options.verify)[0] is not None:
        return []
    precision = backend.precision(options.target)
    budget = allowed(precision, options.tolerance, options.exam, approximate=True)
    sample = source.sample(verification_sizes(source.inputs)[0], options.seed)
    sample = {k: v.to(precision) if v.is_floating_point() else v for k, v in sample.items()}
    return [VerifyHook([sample], Tolerance.of(precision), budget, precision)]


def prove(
    source: Source, captured: Program, program: Program, backend: Backend, options: Options, folder: Path
) -> Verification:
    """Compare the built engine with the untouched model on inputs that reach every expert.

    After approximate passes the engine must also equal the rewritten program exactly, lest their budget hide a wrong
    lowering.
    """
    reference, prepack = reference_of(source, captured, options.verify)
    precision = backend.precision(options.target)
    tolerance = allowed(precision, options.tolerance, options.exam, program.approximate)
    engine = backend.load(model_folder(folder), runner(backend, options), prepack)
    try:
        if program.approximate:
            inexact = backend.deviation(program, options.target)
            own = Tolerance.of(precision) if inexact is None else Tolerance(inexact)
            verify(
                source,
                engine,
                program,
                own,
                options.seed,
                StreamingEngine(program),
                precision if inexact is None else None,
            ).require()
        return verify(source, engine, program, tolerance, options.seed, reference, rounding(precision, program))
    finally:
        engine.close()


def judge(
    source: Source,
    captured: Program,
    program: Program,
    backend: Backend,
    exam: Exam,
    corpus: Corpus,
    options: Options,
    folder: Path,
) -> Quality:
    """The built engine's quality on a text, beside the untouched model."""
    reference, prepack = reference_of(source, captured, options.verify)
    engine = backend.load(model_folder(folder), runner(backend, options), prepack)
    try:
        quality = examine(exam, corpus, source, reference or source.reference(), engine, captured, program)
    finally:
        engine.close()
    return replace(quality, engine_bytes=sum(a.size_bytes for a in hash_artefacts(folder)))


def reference_of(source: Source, captured: Program, how: str) -> tuple[Engine | None, bool]:
    """What to compare with, and whether the engine may copy weights: None and True for the untouched model in memory,
    else the captured program streamed one weight at a time."""
    streamed = how == "streamed" or (how == "auto" and not fits_in_memory(source, captured))
    return (StreamingEngine(captured), False) if streamed else (None, True)


def fits_in_memory(source: Source, captured: Program) -> bool:
    """Whether the untouched model and the engine fit beside each other in the memory that is free now."""
    needed = source.loaded_bytes + 2 * sum(w.size_bytes for w in captured.weights.values())
    return needed < available_bytes()
