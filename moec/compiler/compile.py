"""The compile driver: source -> program -> passes -> engine -> proof -> folder. Each stage may end it; only the last
publishes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from moec.compiler.advice import advice_for
from moec.compiler.compile_parts import compile_parts
from moec.compiler.memory_limit import kept_below, within_limit
from moec.compiler.new_model import as_new_model
from moec.compiler.options import Options
from moec.compiler.proving import choose_reference, contract_checks, prove_folder, require_run_here, subject_of
from moec.compiler.publish import handed_over, lay_out, make_report, sizes_of_files, taken_back, write_report
from moec.compiler.recapture import is_outdated, made_now
from moec.compiler.self_difference import explained_by_model
from moec.compiler.staging import check_out, require_apart, require_free, staging
from moec.compiler.tied_routers import explained_by_ties
from moec.errors import MoecError
from moec.execution.streaming import check_finite
from moec.files.kept import unused
from moec.frontend.source import Source
from moec.layouts import choose
from moec.layouts.gguf_package import require_package
from moec.pipeline.calibration import Calibration
from moec.pipeline.hooks import LoweringProgress
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Hook, StepReport
from moec.program.decoder_signature import require_text_model
from moec.program.program import Program
from moec.progress import Progress
from moec.proof.agreement import look_inside
from moec.report.layers import with_layers
from moec.report.report import Report
from moec.report.size import sizes_of
from moec.shown import size_of
from moec.startup import seldom_collected
from moec.targets.backend import Backend, find_backend, refuse
from moec.targets.rehearsal import refused_early
from moec.text.corpus import corpus_of, read_calibration
from moec.workers.working import working_on


def compile_source(
    source: Source,
    options: Options,
    out: Path,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
    require_run: bool = False,
    said: Sequence[str] = (),
) -> Report:
    """Compile, prove, and publish an engine folder. Nothing appears under `out` unless everything went well;
    with `require_run`, nothing is begun that could not be run here on what it is for (M113).

    What an earlier compile kept (captures, quantized weights) is taken up, also that of one that was killed; without
    `resume` it is neither read nor written. The proof is always made anew. `said`: lines of the account that were told
    before, with the whole of which this is a part.

    Raises:
        MoecError: with the code of the stage that ended the compilation.
    """
    progress = progress or Progress()
    if parts := source.parts():
        said = say_account(source, progress)
        one = partial(compile_source, hooks=hooks, progress=progress, require_run=require_run, said=said)
        return compile_parts(source, parts, options, out, one, progress)
    backend = find_backend(options.target, options.build)
    kept = nullcontext() if options.resume else unused()
    with kept, kept_below(options.max_ram, progress), working_on(options.workers):
        try:
            return _compile(source, options, out, hooks, progress, require_run, backend, said)
        except MoecError as error:
            if not is_outdated(source, backend.precision(options.target), error):
                raise
        progress.stage("capture")
        progress.done("the model is another now than the capture that was kept of it; begun again without that")
        return _compile(source, options, out, hooks, progress, require_run, backend, said)


def _compile(
    source: Source,
    options: Options,
    out: Path,
    hooks: Sequence[Hook],
    progress: Progress,
    require_run: bool,
    backend: Backend,
    said: Sequence[str],
) -> Report:
    options = _ready(source, options, out, require_run, backend)
    calibration = calibration_for(options, source)
    corpus = corpus_of(options.exam.text, source) if options.exam else None
    asked = options.pipeline
    source, following = as_new_model(source, asked, calibration, options.seed)
    options = replace(options, pipeline=following)
    said = say_account(source, progress, said)
    with ExitStack() as stack:
        stack.enter_context(seldom_collected())
        published = stack.enter_context(taken_back())
        folder = stack.enter_context(staging(out, what_is_read(source, options)))
        progress.stage("capture")
        captured = source.capture(backend.precision(options.target))
        captured_bytes = sum(w.size_bytes for w in captured.weights.values())
        nodes = f"{len(list(captured.graph.nodes))} nodes"
        again = ", as an earlier compile captured it" if source.recalled_from else ""
        progress.done(f"{nodes}, {len(captured.weights)} weights, {size_of(captured_bytes)}{again}")
        say_account(source, progress, said)
        if corpus:
            require_text_model(captured.inputs, captured.outputs, source.text)
        options = replace(options, verify=within_limit(source, captured, options))
        refuse(refused_early(captured, options.pipeline, backend, options.target))
        progress.stage("weights")
        check_finite(captured, lambda done, name: progress.advance(done, captured_bytes, "B", name))
        progress.done("all finite")
        options = replace(options, verify=choose_reference(source, captured, options.verify))
        if options.verify == "streamed":
            captured = made_now(source, captured, backend.precision(options.target))
        checks = contract_checks(source, captured, options, backend)
        stack.enter_context(explained_by_model(source))
        stack.enter_context(advice_for(source, captured, options, calibration, corpus))
        named, program, steps = run_passes(captured, options, backend, calibration, (*hooks, *checks), progress)
        steps = [*source.steps, *steps]
        stack.enter_context(explained_by_ties(program, source))
        stack.enter_context(handed_over(named, source, options, published, progress))
        progress.stage("build")
        facts = (backend.build if options.build else backend.export)(
            program, options.target, folder, options.optimize_for, LoweringProgress(progress, hooks)
        )
        facts = with_layers(facts, program)
        progress.done(sizes_of_files(folder))
        lay_out(source, program, options, backend, folder)
        texts = {name: t.sha256 for name, t in (("text", corpus), ("calibration", calibration)) if t is not None}
        texts |= {"models": source.models_hash} if source.models_hash else {}
        subject = subject_of(source, captured, program, backend, options, corpus)
        subject = replace(subject, own_text=next((c.text for c in checks if c.text), None))
        proof = prove_folder(subject, backend, options, folder, progress)
        told = replace(options, pipeline=asked)
        report = make_report(source, told, steps, facts, proof, backend, folder, texts)
        report = replace(report, size=sizes_of(captured, program, source.size_bytes))
        report = replace(report, layers=look_inside(captured, program, [s for c in checks for s in c.samples[:1]]))
        source.require_unchanged()  # after the last hash
        return write_report(report, folder)


def _ready(source: Source, options: Options, out: Path, require_run: bool, backend: Backend) -> Options:
    """The options with the layout that is chosen, once nothing that can be known before a capture forbids the
    compile."""
    if require_run:
        require_run_here(backend, options.target, options.build)
    check_out(out, what_is_read(source, options))
    beside = {"--save-hf": options.save_hf, "--save-gguf": options.save_gguf}
    written = {flag: path for flag, path in beside.items() if path}
    require_apart({"--out": out, **written})
    for path in written.values():
        require_free(path)
    if options.save_gguf:
        require_package()
    possible = backend.layouts(options.target) if options.build else ("plain",)
    return replace(options, layout=choose(options.layout, source.inputs, source.facts(), possible))


def what_is_read(source: Source, options: Options) -> tuple[Path, ...]:
    """The files and folders that a compile reads, which its engine must not take the place of."""
    calibration = options.calibration_text
    texts = (*((options.text,) if options.text else ()), *(calibration.files if calibration else ()))
    return (*source.places, *map(Path, texts))


def say_account(source: Source, progress: Progress, said: Sequence[str] = ()) -> list[str]:
    """Tell what the model is and what is left out of it, a line each, but for what was said; returns all lines. Raises
    M205 or M215 to M217 for what nothing explains."""
    lines = source.account().lines()
    for line in lines[1:] if said else lines:
        if line not in said:
            progress.stage("account")
            progress.done(line)
    return lines


def calibration_for(options: Options, source: Source) -> Calibration | None:
    """The calibration text, where one was given. Raises M201 or M203 when a pass lacks what it needs, M211 when the
    text is of no use."""
    options.pipeline.check(calibrated=options.calibration is not None)
    text = options.calibration_text
    calibration = read_calibration(text, source, options.seed) if text else None
    for item in options.pipeline:
        if calibration is not None and item.needs_calibration():
            item.check_calibration(calibration)
    return calibration


def tell_step(step: StepReport, progress: Progress) -> None:
    """What a pass did, its time, and what it left alone."""
    time_s = step.time_ms / 1e3
    progress.detail(f"{step.name}: {step.rewrites} rewrites, {step.contract}, {time_s:.2f} s")
    for miss in step.misses:
        progress.detail(f"{step.name} left {miss['node']} alone: {miss['reason']}")


def run_passes(
    captured: Program,
    options: Options,
    backend: Backend,
    calibration: Calibration | None,
    hooks: Sequence[Hook],
    progress: Progress,
) -> tuple[Program, Program, list[StepReport]]:
    """The user's passes, then the target's, which may find nothing to do. Returns the program after either, and what
    was done."""
    context = Context(seed=options.seed, calibration=calibration, max_kl=options.max_kl)
    progress.stage("passes")
    program, steps = options.pipeline.run(captured, context, hooks)
    legal, more = backend.legalize(options.target).run(program, context, hooks)
    refuse(backend.supports(legal, options.target))
    for step in steps + more:
        tell_step(step, progress)
    progress.done(", ".join(f"{s.name} {s.rewrites}" for s in steps + more))
    return program, legal, steps + more
