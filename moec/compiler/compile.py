"""The compile driver: source -> program -> passes -> engine -> proof -> folder. Each stage may end it; only the last publishes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from moec import registry
from moec.capture.source import Source
from moec.compiler.staging import MANIFEST, staging
from moec.errors import MoecError
from moec.execution.engine import Backend, Engine, Refusal
from moec.execution.memory import available_bytes
from moec.execution.streaming import StreamingEngine, check_finite
from moec.huggingface.companions import describe, write_companions
from moec.layouts import arrange, choose, model_folder
from moec.pipeline.calibration import Calibration, CalibrationText
from moec.pipeline.hooks import VerifyHook
from moec.pipeline.pipeline import Context, Hook, Pipeline, StepReport
from moec.program.program import Program
from moec.progress import Progress
from moec.proof.compare import Tolerance
from moec.proof.coverage import verification_sizes
from moec.proof.examination import allowed, examine, rounding
from moec.proof.quality import Exam, Quality, require_text_model
from moec.proof.verification import Verification, verify
from moec.report.report import Report, environment, hash_artefacts, step_facts
from moec.targets.rehearsal import rehearse
from moec.targets.target import Target
from moec.text.corpus import Corpus, corpus_of, read_calibration

Verify = Literal["auto", "full", "streamed"]
PAGE = "report.html"


@dataclass(frozen=True)
class Options:
    """How to compile.

    Attributes:
        target: where the engine is to run.
        pipeline: passes that the user named; the target's own follow them.
        optimize_for: `latency` (few tokens a call) or `throughput` (many).
        verify: `full` compares with the untouched model in memory; `streamed` with the captured graph, one weight in memory at a
            time, for models that do not fit; `auto` decides by size.
        tolerance: bound of max|d|/std(reference); the dtype's default when None. An approximate pass's budget.
        seed: for everything random.
        save_hf: folder of a checkpoint to write after the named passes, see `moec.huggingface.saving.save`.
        inputs: `name=dims:dtype` texts that the source was opened with; recorded so that the manifest can rebuild the engine.
        cache: whether a decoder was opened with its cache of keys and values; recorded too.
        layout: of the engine folder, see `moec.layouts`; what suits the model when None.
        exam: a text to judge the engine on, with the error budget. One that is set stands in the place of the approximate passes' default
            budget in max|d|/std.
        build: False leaves the part that needs the target's own runtime to `moec build`; the proof is then its stand-in's.
        calibration: a text for the passes that need data.
    """

    target: Target
    pipeline: Pipeline = field(default_factory=Pipeline)
    optimize_for: str = "latency"
    verify: Verify = "auto"
    tolerance: float | None = None
    seed: int = 0
    save_hf: Path | None = None
    inputs: tuple[str, ...] = ()
    cache: bool = True
    layout: str | None = None
    exam: Exam | None = None
    build: bool = True
    calibration: CalibrationText | None = None


def compile_source(source: Source, options: Options, out: Path, hooks: Sequence[Hook] = (), progress: Progress | None = None) -> Report:
    """Compile, prove, and publish an engine folder. Nothing appears under `out` unless everything went well.

    Raises:
        MoecError: with the code of the stage that ended the compilation.
    """
    progress = progress or Progress()
    backend = find_backend(options.target, options.build)
    options = replace(options, layout=choose(options.layout, source.inputs, describe(source), backend.layouts(options.target) if options.build else ("plain",)))
    corpus = corpus_of(options.exam.text, source) if options.exam else None
    calibration = calibration_for(options, source)
    with ExitStack() as stack:
        folder = stack.enter_context(staging(out))
        progress.stage("capture")
        captured = source.capture(backend.precision(options.target))
        progress.done(
            f"{len(list(captured.graph.nodes))} nodes, {len(captured.weights)} weights, {sum(w.size_bytes for w in captured.weights.values()) / 2**20:.1f} MiB"
        )
        if corpus:
            require_text_model(captured.inputs, captured.outputs, source.text)
        refuse(rehearse(captured, options.pipeline, backend, options.target))
        progress.stage("weights")
        check_finite(captured)
        progress.done("all finite")
        checks = contract_checks(source, captured, options, backend)
        named, program, steps = run_passes(captured, options, backend, calibration, (*checks, *hooks), progress)
        stack.enter_context(checkpoint_of(named, source, options.save_hf))
        progress.stage("build")
        facts = (backend.build if options.build else backend.export)(program, options.target, folder, options.optimize_for, progress)
        progress.done(", ".join(f"{p.name} {p.stat().st_size / 2**20:.1f} MiB" for p in sorted(folder.iterdir())))
        lay_out(source, program, options, backend, folder)
        progress.stage("verify")
        proof = prove(source, captured, program, backend, options, folder)
        proof.require()
        progress.done(f"{proof.comparison}; {proof.coverage}")
        if options.exam and corpus:
            progress.stage("text")
            proof = replace(proof, quality=judge(source, captured, program, backend, options.exam, corpus, options, folder))
            proof.require()
            progress.done("; ".join(f"{name} {figure}" for name, figure in proof.quality.rows()) if proof.quality else "")
        report = make_report(source, options, program, steps, facts, proof, backend, folder)
        (folder / MANIFEST).write_text(report.to_json(), encoding="utf-8")
        (folder / PAGE).write_text(report.to_html(), encoding="utf-8")
    return report


def calibration_for(options: Options, source: Source) -> Calibration | None:
    """The calibration text, where one was given. Raises M203 when a pass cannot work without, M211 when it is of no use."""
    asking = next((p for p in options.pipeline if p.needs_calibration()), None)
    if asking is not None and options.calibration is None:
        raise MoecError("M203", f"{asking.name} needs a text to calibrate on", str(asking), "name one with --calibration FILE")
    return read_calibration(options.calibration, source, options.seed) if options.calibration else None


def find_backend(target: Target, runtime: bool = True) -> Backend:
    """The target's backend, ready; without `runtime`, where something stands in for it, too.

    Raises:
        MoecError: M202 for an unknown one, M208 for bad options, M301 or M302 when its runtime or hardware is not here.
    """
    backend: Backend = registry.find("backends", target.backend)()
    probe = backend.probe(target)
    if not probe.available and (runtime or backend.stand_in(target) is None):
        raise MoecError(probe.code, f"{target.backend} cannot be used here: {probe.missing}", str(target), probe.install)
    refuse(backend.options(target))
    return backend


def runner(backend: Backend, options: Options) -> Target:
    """What runs the engine for the proof."""
    return backend.stand_in(options.target, options.build) or options.target


def refuse(refusals: Sequence[Refusal]) -> None:
    """Raise M208 with the first reason, if there is any."""
    if refusals:
        raise MoecError("M208", refusals[0].reason, refusals[0].where, refusals[0].fix)


def contract_checks(source: Source, captured: Program, options: Options, backend: Backend) -> list[Hook]:
    """Every pass is held to its contract on one small input; a model that does not fit into memory is proven at the end only."""
    if reference_of(source, captured, options.verify)[0] is not None:
        return []
    precision = backend.precision(options.target)
    budget = allowed(precision, options.tolerance, options.exam, approximate=True)
    sample = source.sample(verification_sizes(source.inputs)[0], options.seed)
    sample = {k: v.to(precision) if v.is_floating_point() else v for k, v in sample.items()}
    return [VerifyHook([sample], Tolerance.of(precision), budget, precision)]


def run_passes(
    captured: Program, options: Options, backend: Backend, calibration: Calibration | None, hooks: Sequence[Hook], progress: Progress
) -> tuple[Program, Program, list[StepReport]]:
    """The user's passes, then the target's, which may find nothing to do. Returns the program after either, and what was done."""
    context = Context(seed=options.seed, calibration=calibration)
    progress.stage("passes")
    program, steps = options.pipeline.run(captured, context, hooks)
    legal, more = backend.legalize(options.target).run(program, context, hooks)
    refuse(backend.supports(legal, options.target))
    progress.done(", ".join(f"{s.name} {s.rewrites}" for s in steps + more))
    return program, legal, steps + more


@contextmanager
def checkpoint_of(program: Program, source: Source, folder: Path | None) -> Iterator[None]:
    """Write the program as a checkpoint for transformers, early, so that a refusal costs nothing; take it back if the block fails."""
    if folder is None:
        yield
        return
    from moec.huggingface.saving.save import save_hf

    save_hf(program, source, folder)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def lay_out(source: Source, program: Program, options: Options, backend: Backend, folder: Path) -> None:
    """Put the model's own files beside a built engine, and lay the folder out for the software that is to run it."""
    write_companions(source, folder)
    outputs, target = backend.outputs(folder), options.target
    layout = options.layout or "plain"
    shared = layout == "genai" and backend.shares_cache(folder)  # nobody else is told
    arrange(layout, folder, program.inputs, outputs, describe(source), target.device or "cpu", target.threads, shared)


def prove(source: Source, captured: Program, program: Program, backend: Backend, options: Options, folder: Path) -> Verification:
    """Compare the built engine with the untouched model on inputs that reach every expert.

    After approximate passes the engine must also equal the rewritten program exactly, lest their budget hide a wrong lowering.
    """
    reference, prepack = reference_of(source, captured, options.verify)
    precision = backend.precision(options.target)
    tolerance = allowed(precision, options.tolerance, options.exam, program.approximate)
    engine = backend.load(model_folder(folder), runner(backend, options), prepack)
    try:
        if program.approximate:
            inexact = backend.deviation(program, options.target)
            own = Tolerance.of(precision) if inexact is None else Tolerance(inexact)
            verify(source, engine, program, own, options.seed, StreamingEngine(program), precision if inexact is None else None).require()
        return verify(source, engine, program, tolerance, options.seed, reference, rounding(precision, program))
    finally:
        engine.close()


def judge(source: Source, captured: Program, program: Program, backend: Backend, exam: Exam, corpus: Corpus, options: Options, folder: Path) -> Quality:
    """The built engine's quality on a text, beside the untouched model."""
    reference, prepack = reference_of(source, captured, options.verify)
    engine = backend.load(model_folder(folder), runner(backend, options), prepack)
    try:
        quality = examine(exam, corpus, source, reference or source.reference(), engine, captured, program)
    finally:
        engine.close()
    return replace(quality, engine_bytes=sum(a.size_bytes for a in hash_artefacts(folder)))


def make_report(
    source: Source, options: Options, program: Program, steps: list[StepReport], facts: dict[str, Any], proof: Verification, backend: Backend, folder: Path
) -> Report:
    """Everything that is known of the engine, without anything that changes from run to run."""
    ran = runner(backend, options)
    otherwise = facts.get("stand_in", ()) if ran != options.target else ()
    return Report(
        source=source.text, target=str(options.target), pipeline=str(options.pipeline), comparison=proof.comparison, coverage=proof.coverage, seed=options.seed,
        inputs=options.inputs, optimize_for=options.optimize_for, verify=options.verify, tolerance_asked=options.tolerance, cache=options.cache,
        layout=options.layout or "plain", source_hashes=source.hashes, steps=step_facts(steps),
        facts={**facts, "verified_by": ", ".join([str(ran), *otherwise])}, built=options.build,
        calibration=given_calibration(options), refused=tuple(asdict(r) for r in proof.refused), consistency=proof.consistency, quality=proof.quality,
        decided=proof.decided, environment=environment(backend.probe(options.target).versions), artefacts=hash_artefacts(folder),
    )  # fmt: skip


def given_calibration(options: Options) -> dict[str, Any] | None:
    """The calibration text as a manifest keeps it, with its hash: an engine can be made again only from the same."""
    text = options.calibration
    return None if text is None else {**asdict(text), "sha256": sha256(Path(text.file).read_bytes()).hexdigest()}


def reference_of(source: Source, captured: Program, how: str) -> tuple[Engine | None, bool]:
    """What to compare with, and whether the engine may copy weights: None and True for the untouched model in memory, else the captured
    program streamed one weight at a time."""
    streamed = how == "streamed" or (how == "auto" and not fits_in_memory(source, captured))
    return (StreamingEngine(captured), False) if streamed else (None, True)


def fits_in_memory(source: Source, captured: Program) -> bool:
    """Whether the untouched model and the engine fit beside each other in the memory that is free now."""
    needed = source.loaded_bytes + 2 * sum(w.size_bytes for w in captured.weights.values())
    return needed < available_bytes()
