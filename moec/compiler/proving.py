"""How a compile proves its engine: the subject, the engine that runs, and the contracts of passes on the way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from moec.compiler.options import Options
from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.memory import total_bytes
from moec.execution.streaming import StreamingEngine
from moec.frontend.source import Source
from moec.layouts import model_folder
from moec.program.conditions import nearest
from moec.program.program import Program
from moec.program.signature import Sample, converted
from moec.progress import Progress
from moec.proof.compare import Tolerance
from moec.proof.contract import VerifyHook
from moec.proof.exam import Exam
from moec.proof.own_text import OwnText, write_own_text
from moec.proof.sizes import contract_sizes, verification_sizes
from moec.proof.subject import Reference, Subject, Yardstick, yardstick
from moec.proof.verification import Verification, prove
from moec.proof.where_run import WhereRun
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


def ran_on(backend: Backend, target: Target, built: bool) -> str:
    """The same as a text that names the hardware: `onnxruntime:cpu`, or the target's own."""
    stand_in = backend.stand_in(target, built)
    return str(target) if stand_in is None else f"{stand_in.backend}:{stand_in.device or 'cpu'}"


def runner(backend: Backend, target: Target, built: bool) -> Target:
    """What runs the engine for the proof: the target, or its stand-in on this machine (`Backend.stand_in`)."""
    return backend.stand_in(target, built) or target


def require_run_here(backend: Backend, target: Target, built: bool) -> None:
    """Raise M113 unless a proof on this machine would run the engine on what it is for."""
    WhereRun(str(target), ran_on(backend, target, built)).require()


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
        max_kl=options.max_kl if options.exam is None else None,
        exam=fitting_exam(options.exam, source),
        corpus=corpus,
        seed=options.seed,
        target=str(options.target),
        ran_on=ran_on(backend, options.target, options.build),
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
        proof = prove(subject, engine, until_failure=True, progress=progress)
    proof.require()
    for check in proof.checks:
        for k, line in enumerate(str(check).splitlines()):
            progress.detail(line.strip() if k else f"{check.name}: {line}")
    progress.done("; ".join(proof.short))
    return proof


def require_text_for(max_kl: float | None, judged_by: Yardstick, approximate: bool, model: str) -> None:
    """Raise M201 for a bound on the divergence of what passes that change numbers leave of a model without a text."""
    if max_kl is not None and approximate and judged_by == "outputs":
        what = "--max-kl bounds what a causal language model writes, and this model is judged by its outputs"
        raise MoecError("M201", what, model, "use --tolerance in its place, or leave it out")


def contract_checks(source: Source, captured: Program, options: Options, backend: Backend) -> list[VerifyHook]:
    """Every pass is held to its contract, by the proof's own yardstick: on one small input and one past every window of
    the model, or on the model's own text; a model that does not fit into memory is proven at the end only."""
    asked, by = options.tolerance, yardstick(captured, options.tolerance, options.exam)
    approximate = any(item.contract == "approximate" for item in options.pipeline.passes)
    require_text_for(options.max_kl if asked is None else None, by, approximate, source.text)
    if options.verify == "streamed":
        return []
    precision = backend.precision(options.target)
    samples = contract_samples(source, captured, options.seed)
    exact = Tolerance.of(precision)
    if by != "outputs":
        write = partial(_own_text, source, captured, options.seed) if by == "own text" else None
        return [VerifyHook(samples, exact, None, precision, write, options.max_kl)]
    budget = None if asked is None else Tolerance(asked)
    return [VerifyHook(samples, exact, budget, precision, by_width=asked is None)]


def _own_text(source: Source, captured: Program, seed: int) -> OwnText:
    return write_own_text(source.reference(), source, seed, StreamingEngine(captured).holds)


def contract_samples(source: Source, captured: Program, seed: int) -> list[Sample]:
    """Inputs for contracts: one small, and one long where that is cheap; of the sizes that the model asks for, the
    first of each at which the captured program runs."""
    sizes = contract_sizes(source, captured)
    first = nearest(captured.conditions, sizes[0]) or sizes[0]
    tried = (first, *verification_sizes(source.inputs, source.scale))
    samples = (converted(captured.inputs, source.sample(s, seed)) for s in tried)
    small = next((s for s in samples if _runs(captured, s)), None)
    long = (converted(captured.inputs, source.sample(s, seed)) for s in sizes[1:])
    return [small or converted(captured.inputs, source.sample(first, seed)), *(s for s in long if _runs(captured, s))]


def _runs(program: Program, sample: Sample) -> bool:
    try:
        StreamingEngine(program)(**sample)
    except Exception:  # outside of its conditions, or of a table
        return False
    return True
