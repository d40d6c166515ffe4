"""The public functions: one for each verb of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moec.compiler.compile import compile_source
from moec.compiler.contest import Contest
from moec.compiler.engine_folder import open_recorded, options_of, require_same_texts
from moec.compiler.finish import complete_engine
from moec.compiler.open import open_source
from moec.compiler.options import EXAM, SETTINGS, Options, Verify, read_settings
from moec.compiler.parts import is_in_parts, load_parts
from moec.compiler.programs import capture, inspect
from moec.compiler.prove_again import Question, bisect_engine, prove_again
from moec.execution.engine import Engine
from moec.execution.generation import GREEDY, Sampling
from moec.frontend.from_exported import Dynamic
from moec.frontend.samples import specs_of
from moec.frontend.source import Source
from moec.layouts import model_folder
from moec.pipeline.pipeline import Hook, Pipeline
from moec.program.conditions import nearest
from moec.program.program import Program
from moec.progress import Progress
from moec.proof.bisection import Divergence
from moec.proof.exam import Exam
from moec.proof.sizes import verification_sizes
from moec.proof.verification import Verification
from moec.report.artefacts import MANIFEST, check_artefacts
from moec.report.page import html
from moec.report.report import Report
from moec.report.speed import read_speeds
from moec.targets.backend import find_backend
from moec.targets.target import Target
from moec.text.writer import Writer, Written
from moec.timing.benchmark import Benchmark

__all__ = ["bench", "build", "capture", "compile", "inspect", "load", "open_source", "rebuild", "verify"]

Model = str | Path | nn.Module | Source | Program


def compile(
    model: Model,
    *,
    out: str | Path,
    target: str | Target = "onnxruntime",
    pipeline: str | Pipeline = "",
    inputs: Mapping[str, Tensor] | Sequence[str] | None = None,
    dynamic: Dynamic | None = None,
    optimize_for: str = "latency",
    verify: Verify = "auto",
    tolerance: float | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    cache: bool = True,
    leave_out: Sequence[str] = (),
    part: str | None = None,
    save_hf: str | Path | None = None,
    hf_format: str = "compressed-tensors",
    save_gguf: str | Path | None = None,
    gguf_floats: str = "f16",
    layout: str | None = None,
    text: str | Path | None = None,
    tokens: int | None = None,
    window: int | None = None,
    max_kl: float | None = None,
    max_perplexity_ratio: float | None = None,
    calibration: str | Path | None = None,
    calibration_tokens: int | None = None,
    build: bool = True,
    resume: bool = True,
    max_ram: int | str | None = None,
    workers: str | None = None,
    require_run: bool = False,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
) -> Report:
    """Compile a model into a verified engine folder.

    Args:
        model: see `moec.compiler.open.open_source`, which takes `inputs`, `dynamic`, `trust_remote_code`,
            `allow_pickle`, `cache`, `leave_out` and `part` too.
        out: the engine folder; it appears only when everything went well.
        require_run: refuse (M113) before any work what could not be run here on the hardware that it is for.
        hooks: watchers of the pipeline, see `moec.pipeline.hooks`.
        progress: is told of every stage.

    All other keywords are settings, see `moec.compiler.options.Options`.

    Returns:
        The report that was also written to `moec.json` and `report.html`.

    Raises:
        MoecError: with the code of whatever ended the compilation; then nothing was published.
    """
    given = {name: value for name, value in locals().items() if name in SETTINGS}
    if isinstance(inputs, Mapping):  # the manifest says what they are samples of
        given["inputs"] = specs_of(inputs, dynamic)
    options = Options.of(given)
    find_backend(options.target, build)  # before any work: a missing runtime must not cost a capture
    source = open_source(
        model, inputs=inputs, dynamic=dynamic, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
        cache=cache, leave_out=options.leave_out, part=options.part or "",
    )  # fmt: skip
    return compile_source(source, options, Path(out), hooks, progress, require_run)


def rebuild(
    manifest: str | Path,
    out: str | Path,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    require_run: bool = False,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Report:
    """Compile again from an engine's `moec.json`: same source and same settings, but for those that are given here.

    Args:
        manifest: the file, or the engine's folder.
        out, hooks, progress, require_run, trust_remote_code, allow_pickle: see `compile`.
        settings: take the place of the manifest's, see `moec.compiler.options.Options`.

    Raises:
        MoecError: M106 when the source, or a text that the manifest names, has changed; M201 for an unknown setting.
    """
    report = Report.read(Path(manifest, MANIFEST) if Path(manifest).is_dir() else Path(manifest))
    options = replace(options_of(report), **read_settings(settings))
    find_backend(options.target, options.build)
    opening = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    asked = replace(report, settings={**report.settings, **options.to_plain()})
    source = open_recorded(asked, opening)
    require_same_texts(report, options)
    return compile_source(source, options, Path(out), hooks, progress, require_run)


def build(
    engine: str | Path,
    *,
    model: str | None = None,
    progress: Progress | None = None,
    tolerance: float | None = None,
    text: str | Path | None = None,
    tokens: int | None = None,
    window: int | None = None,
    max_kl: float | None = None,
    max_perplexity_ratio: float | None = None,
    require_run: bool = False,
    **opening: Any,
) -> Report:
    """Finish an engine of `build=False` on the machine that has its runtime and hardware, or build one again for the
    runtime here. `model`: where the source lies here; bounds and text: as in `verify`. See `complete_engine`."""
    budget = {"max_kl": max_kl, "max_perplexity_ratio": max_perplexity_ratio}
    asked = _asked(tolerance=tolerance, text=text, tokens=tokens, window=window, **budget)
    return complete_engine(Path(engine), opening, model, progress, asked, require_run)


def load(folder: str | Path, *, check: str = "hash") -> Engine:
    """An engine from its folder.

    Args:
        folder: what `compile` wrote.
        check: `hash` compares every file with the manifest's SHA-256, `size` only the sizes.

    Raises:
        MoecError: M106 when a file is missing or was changed, M302 when the engine's hardware is not here.
    """
    path = Path(folder)
    report = Report.read(path / MANIFEST)
    check_artefacts(report.artefacts, path, check)
    target = Target.parse(report.target)
    if is_in_parts(report):
        return load_parts(find_backend(target, written=True), target, path, report.facts)
    engine = find_backend(target, written=True).load(model_folder(path), target)
    engine.assume(report.assumptions)
    return engine


def verify(
    engine: str | Path,
    against: Model | None = None,
    *,
    seed: int = 1,
    tolerance: float | None = None,
    text: str | Path | None = None,
    tokens: int | None = None,
    window: int | None = None,
    max_kl: float | None = None,
    max_perplexity_ratio: float | None = None,
    **opening: Any,
) -> Verification:
    """Prove an engine again: against its source (default; one that was made in memory has to be given, and must have
    the weights of then), another engine's folder, or another model.

    Other inputs than the compile's are used (`seed`). Returns the proof, whose `ok` is the verdict. With a `text`, its
    `quality` is there too, see `moec.proof.exam.Exam`. Bounds are those given here, else moec's own, or the manifest's
    where these ask for more.
    """
    budget = {"tokens": tokens, "window": window, "max_kl": max_kl, "max_perplexity_ratio": max_perplexity_ratio}
    asked = _asked(seed=seed, tolerance=tolerance, text=text, **budget)
    return prove_again(Path(engine), against, asked, opening)


def _asked(**given: Any) -> Question:
    """What is asked of a later proof, read and checked."""
    read = read_settings(given)
    exam = Exam.of(read["text"], **{name: read[name] for name in EXAM if name != "text"})
    return Question(read.get("seed", Question.seed), read["tolerance"], exam, read["max_kl"])


def page(engine: str | Path, proof: Verification) -> str:
    """An engine's report as an HTML page, with a later proof in the place of the compile's."""
    report = read_report(engine)
    return html(replace(report, proof=proof), read_speeds(Path(engine), report.artefacts))


def bisect(
    engine: str | Path, model: Model | None = None, *, seed: int = 1, tolerance: float | None = None, **options: Any
) -> Divergence:
    """The first pass or step of the lowering, layer and expert at which an engine departs from the untouched model, see
    `moec.proof.bisection`. `model`: the engine's own, which has to be given where it was made in memory, and must be as
    it was then (M106). Other arguments as in `verify`."""
    asked = _asked(seed=seed, tolerance=tolerance, **{name: options.pop(name, None) for name in EXAM})
    return bisect_engine(Path(engine), asked, options, model)


def sample(folder: str | Path, seed: int = 0, **opening: Any) -> dict[str, Tensor]:
    """Random valid inputs for an engine, from its source's domains. `opening`: arguments of `open_source`."""
    source = open_recorded(report := read_report(folder), opening)
    sizes = {name: 2 if k == 0 else 16 for k, name in enumerate(verification_sizes(source.inputs)[0])}
    return source.sample(nearest(report.assumptions.sizes, sizes) or sizes, seed)


def read_report(folder: str | Path) -> Report:
    """The report in an engine's folder. Raises M106 when it is missing or none."""
    return Report.read(Path(folder) / MANIFEST)


def write(
    folder: str | Path,
    prompt: str | Sequence[int],
    *,
    max_tokens: int = 64,
    sampling: Sampling = GREEDY,
    check: str = "hash",
) -> tuple[Written, Iterator[str]]:
    """Continue a prompt with a decoder's engine folder.

    Args:
        folder, check: see `load`.
        prompt, max_tokens, sampling: see `moec.text.writer.Writer.write`. On an engine that is loaded, use
            `moec.execution.generation.generate`.

    Returns:
        A record of tokens, text and times that grows, and the pieces of text, which make it grow.
    """
    writer = Writer(load(folder, check=check), Path(folder), read_report(folder).source)
    return writer.write(prompt, max_tokens, sampling)


def bench(
    engines: Sequence[str | Path | Engine],
    *,
    sizes: Mapping[str, int] | None = None,
    runs: int | None = None,
    warmup: int | None = None,
    eager: bool = False,
    forward: bool = False,
    max_tokens: int = 32,
    save: bool = False,
    progress: Progress | None = None,
    **opening: Any,
) -> Benchmark:
    """Time engines beside each other, in turns, on the same inputs: as decoders where all of them are, else forward.

    Args:
        engines: folders or engines; the others are compared with the first.
        sizes: see `moec.timing.engines.bench_engines` and `moec.timing.decoders.bench_decoders`.
        runs, warmup: timed and untimed runs of each; by default 30 and 3 forward, 10 and 1 texts.
        eager: put the first folder's untouched model in eager PyTorch beside them.
        forward: time single forward passes of decoders too. max_tokens: new tokens of a text.
        save: keep each folder's times in it, so that its page shows them; see `moec.report.speed`.
    """
    contest = Contest(engines, load, opening, eager)
    found = contest.run(sizes, runs, warmup, max_tokens, forward, progress)
    if save:
        contest.keep(found)
    return found
