"""How a compile proves its engine: the subject, the engine that runs, and the contracts of passes on the way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from moec.compiler.options import Options
from moec.execution.engine import Engine
from moec.execution.memory import total_bytes
from moec.frontend.source import Source
from moec.layouts import model_folder
from moec.pipeline.pipeline import Hook
from moec.program.program import Program
from moec.progress import Progress
from moec.proof.checks.values import Values
from moec.proof.compare import Tolerance
from moec.proof.contract import VerifyHook
from moec.proof.exam import Exam
from moec.proof.inputs import verification_sizes
from moec.proof.subject import Reference, Subject, budget_of
from moec.proof.verification import Verification, prove
from moec.report.artefacts import hash_artefacts
from moec.targets.backend import Backend
from moec.targets.engine_file import EngineFile
from moec.targets.target import Target
from moec.text.corpus import Corpus


def choose_reference(source: Source, captured: Program, asked: str) -> Reference:
    """What a proof compares with: as asked, or by size, where the untouched model and the engine have to fit into half
    of this machine's memory. Decided once a compile; not by the memory that is free now, which would make the report
    change from run to run."""
    if asked == "auto":
        needed = source.loaded_bytes + 2 * sum(w.size_bytes for w in captured.weights.values())
        return "full" if needed < total_bytes() // 2 else "streamed"
    return "streamed" if asked == "streamed" else "full"


def runner(backend: Backend, target: Target, built: bool) -> Target:
    """What runs the engine for the proof: the target, or its stand-in on this machine (`Backend.stand_in`)."""
    return backend.stand_in(target, built) or target


@contextmanager
def opened(backend: Backend, target: Target, folder: Path, built: bool, reference: Reference) -> Iterator[Engine]:
    """The engine in a folder, loaded and closed again; beside a streamed reference its weights stay memory-mapped."""
    engine = backend.load(model_folder(folder), runner(backend, target, built), reference == "full")
    try:
        yield engine
    finally:
        engine.close()


def subject_of(
    source: Source, captured: Program, program: Program, backend: Backend, options: Options, corpus: Corpus | None
) -> Subject:
    """What a compile with these options has to prove."""
    return replace(
        Subject.of(source, captured, program, backend, options.target),
        reference="streamed" if options.verify == "streamed" else "full",  # decided by `choose_reference` before
        asked=options.tolerance,
        exam=fitting_exam(options.exam, source),
        corpus=corpus,
        seed=options.seed,
    )


def fitting_exam(exam: Exam | None, source: Source) -> Exam | None:
    """An exam whose windows are no longer than the model's context."""
    return exam and replace(exam, window=min(exam.window, source.facts().context or sys.maxsize))


def prove_folder(
    subject: Subject, backend: Backend, options: Options, folder: Path, progress: Progress
) -> Verification:
    """Prove the engine in a finished folder. Raises the error of the first check that fails."""
    file = EngineFile(backend, options.target, model_folder(folder), options.optimize_for)
    subject = replace(subject, engine_bytes=sum(a.size_bytes for a in hash_artefacts(folder)), file=file)
    progress.stage("verify")
    with opened(backend, options.target, folder, options.build, subject.reference) as engine:
        proof = prove(subject, engine, until_failure=True)
    proof.require()
    values = [f"{found.constants:,} constants equal" for found in [proof.find(Values)] if found]
    progress.done("; ".join([str(proof.comparison), str(proof.coverage), *values, *text_figures(proof)]))
    return proof


def text_figures(proof: Verification) -> list[str]:
    """What was found on a text, in phrases; none without one."""
    found = proof.quality
    return [f"{name} {text}" for name, text, _ in found.budgets()] + [f"top-1 {found.top1:.1%}"] if found else []


def contract_checks(source: Source, options: Options, backend: Backend) -> list[Hook]:
    """Every pass is held to its contract on one small input; a model that does not fit into memory is proven at the
    end only."""
    if options.verify == "streamed":
        return []
    precision = backend.precision(options.target)
    sample = source.sample(verification_sizes(source.inputs)[0], options.seed)
    sample = {k: v.to(precision) if v.is_floating_point() else v for k, v in sample.items()}
    budget = budget_of(precision, options.tolerance, options.exam)
    return [VerifyHook([sample], Tolerance.of(precision), budget, precision)]
