"""An engine of several graphs, each compiled and proven alone, then all together: an encoder and a decoder, or what
reads images, what puts them among tokens, and a decoder.

Each part is an engine's folder of its own, inside the whole one's. The graphs lie beside each other on top, under the
names that clients look for; their weights are those of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moec.compiler.engine_folder import EngineFolder
from moec.compiler.options import Options
from moec.compiler.proving import ran_on, runner
from moec.compiler.publish import make_report, write_report
from moec.compiler.staging import check_out, staging
from moec.errors import MoecError
from moec.execution.encoder_decoder import EncoderDecoderEngine
from moec.execution.parts import PartsEngine
from moec.execution.streaming import StreamingEngine
from moec.execution.vision_language import VisionLanguageEngine
from moec.frontend.source import Source
from moec.layouts import genai_images
from moec.layouts.arrange import genai_or_plain
from moec.pipeline.pipeline import Pipeline
from moec.program.encoder_decoder import DECODER, PARTS
from moec.program.vision_language import VISION_PARTS
from moec.progress import Progress
from moec.proof.encoder_decoder import prove_encoder_decoder
from moec.proof.joint import Joint
from moec.proof.verification import Verification
from moec.proof.vision_language import prove_vision_language
from moec.report.artefacts import AGAIN, MANIFEST
from moec.report.report import Report
from moec.targets.backend import Backend, find_backend
from moec.targets.target import Target

FACT = "parts"  # of a manifest: the parts of an engine of several graphs
JOINED_BY = "joined_by"  # of a manifest: see `Source.joined_by`
_OWN_OF_PARTS = {"verify"}  # settings that each part decides: by its size
CompileOne = Callable[[Source, Options, Path], Report]


@dataclass(frozen=True)
class Kind:
    """A kind of engines of several graphs.

    Attributes:
        parts: their names, in order. what: such a model in words.
        engine: made of the parts, and of what `Source.joined_by` says. prove: all of them together.
        way_out: of a model whose parts cannot be compiled.
        layouts: that its folder may have.
    """

    parts: tuple[str, ...]
    what: str
    engine: Callable[..., PartsEngine]
    prove: Callable[..., Verification]
    way_out: str
    layouts: tuple[str, ...] = ("plain",)


KINDS = {
    kind.parts: kind
    for kind in (
        Kind(
            PARTS, "an encoder and a decoder", EncoderDecoderEngine, prove_encoder_decoder,
            "compile its forward alone with --no-cache, or one part with --part",
        ),
        Kind(
            VISION_PARTS, "an encoder of images, an embedding and a decoder", VisionLanguageEngine,
            prove_vision_language,
            "compile it for text alone with --leave-out 'pixel_values*', or one part with --part", ("plain", "genai"),
        ),
    )
}  # fmt: skip


def is_in_parts(report: Report) -> bool:
    """Whether an engine has several graphs, as its manifest says. Raises M106 for parts that moec does not write."""
    found = report.facts.get(FACT)
    if found is not None and tuple(found) not in KINDS:
        raise MoecError("M106", f"an engine of the parts {found!r}", "moec.json", "compile the engine again")
    return found is not None


def kind_of(facts: Mapping[str, Any]) -> Kind:
    """The kind of an engine that is in parts, by the facts of its manifest."""
    return KINDS[tuple(facts[FACT])]


def refuse_parts(report: Report, verb: str, flag: str = "") -> None:
    """Raise M201 for what is done with one graph, where an engine has several; the way out names a part, also in place
    of `{part}` in the flag."""
    if is_in_parts(report):
        first, *others = kind_of(report.facts).parts
        flag = flag.format(part=first)
        command = f"moec {verb} ENGINE/{first} {flag}".rstrip()
        what = f"this engine has {len(others) + 1} graphs, and `{f'moec {verb} {flag}'.rstrip()}` looks at one"
        names = " and ".join(f"ENGINE/{part}" for part in others)
        raise MoecError("M201", what, report.source, f"name a part: {command}, then {names}")


def compile_parts(
    source: Source, parts: Mapping[str, Source], options: Options, out: Path, one: CompileOne, progress: Progress
) -> Report:
    """Compile and prove each part with `one`, then all together; nothing appears under `out` unless all went well.

    Raises:
        MoecError: M201 and M208 for what several graphs do not go with; else with the code of the stage that ended it.
    """
    backend, kind = find_backend(options.target, options.build), KINDS[tuple(parts)]
    _require(options, backend, kind)
    check_out(out, source.places)
    with staging(out, source.places) as folder:
        reports, idle = {}, _Idle(options.pipeline)
        for name, part in parts.items():
            progress.detail(f"the {name}:")
            own = replace(options, layout="plain", part=name)
            reports[name] = idle.without(own, lambda asked, p=part, n=name: one(p, asked, folder / n))  # type: ignore[misc]
        idle.require()
        source.write_companions(folder)
        files = backend.join(folder, kind.parts)
        layout = _lay_out(source, parts, kind, options, backend, folder, files)
        progress.stage("verify")
        proofs, facts = {name: report.proof for name, report in reports.items()}, _facts(source, kind, reports)
        with opened_parts(backend, options.target, folder, options.build, facts) as engine:
            proof = _prove(source, engine, proofs, backend, options, options.seed, kind, folder)
        proof.require()
        progress.done("; ".join([f"all {len(proofs)} parts together", *proof.short]))
        options = replace(options, layout=layout)
        report = make_report(source, options, [], facts, proof, backend, folder, {})
        steps = tuple({**s, "name": f"{n}: {s['name']}"} for n, r in reports.items() for s in r.steps)
        source.require_unchanged()
        return write_report(replace(report, steps=steps), folder)


class _Idle:
    """Passes that change nothing in a part, which is compiled without them: they have to in another."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._of_use, self._pipeline, self._said = set[str](), pipeline, dict[str, MoecError]()

    def without(self, options: Options, compiled: Callable[[Options], Report]) -> Report:
        """The report of a part, compiled without the passes that change nothing in it."""
        passes = [*options.pipeline]
        while True:
            try:
                report = compiled(replace(options, pipeline=Pipeline(tuple(passes))))
            except MoecError as error:
                idle = next((p for p in passes if error.code == "M103" and str(p) == error.where), None)
                if idle is None:
                    raise
                passes.remove(idle)
                self._said[str(idle)] = error
            else:
                self._of_use |= set(map(str, passes))
                return report

    def require(self) -> None:
        """Raise M103 for a pass that changed nothing in any part."""
        for item in map(str, self._pipeline):
            if item not in self._of_use:
                raise self._said[item]


def _require(options: Options, backend: Backend, kind: Kind) -> None:
    way_out, count = kind.way_out, len(kind.parts)
    if not backend.joins or not options.build:
        what = f"{backend.name} has no engines of {count} graphs" if options.build else "all graphs are built at once"
        raise MoecError("M208", f"this model is {kind.what}, and {what}", str(options.target), way_out)
    if options.layout not in (None, *kind.layouts):
        what = f"{kind.what} are not laid out for {options.layout}"
        raise MoecError("M208", what, f"layout {options.layout}", f"use --layout plain, or {way_out}")
    if options.save_hf:
        raise MoecError("M201", "--save-hf is for a model of one graph", "save_hf", f"leave it out; {way_out}")
    if options.text:
        what = f"--text is for causal language models, and this is {kind.what}"
        raise MoecError("M201", what, "text", "leave it out: each part is judged by its outputs")
    alone = f"compile the {kind.parts[0]} alone with --part {kind.parts[0]}"
    if options.calibration:
        fix = f"leave it out, or {alone}"
        raise MoecError("M201", "--calibration is for a model of one graph", "calibration", fix)
    for item in options.pipeline.passes:
        if item.needs_calibration():
            without = item.without_data()
            what = f"{item.name} needs a text to calibrate on, which {kind.what} together do not take"
            fix = f"leave it out, or {alone} and --calibration FILE"
            raise MoecError("M203", what, str(item), f"use {without} in its place; or {fix}" if without else fix)


def _lay_out(
    source: Source, parts: Mapping[str, Source], kind: Kind, options: Options, backend: Backend, folder: Path,
    files: Mapping[str, str],
) -> str:  # fmt: skip
    """Write what clients read of all parts; the layout. Raises M208 where the one that was asked for is not
    possible."""
    if "genai" not in kind.layouts or options.layout == "plain":
        return "plain"
    inputs, facts, target = {n: part.inputs for n, part in parts.items()}, parts[DECODER].facts(), options.target
    layout = genai_or_plain(options.layout, genai_images.refusal(inputs, facts))
    if layout == "plain":
        return layout
    outputs, shared = [o.name for o in backend.outputs(folder / DECODER)], backend.shares_cache(folder / DECODER)
    how = target.device or "cpu", target.threads, shared, backend.client_settings(target)
    genai_images.write(folder, files, inputs, outputs, facts, source.joined_by()["image_token"], *how)
    return layout


def _facts(source: Source, kind: Kind, reports: Mapping[str, Report]) -> dict[str, Any]:
    blocks = [{**block, "node": f"{n}: {block.get('node', '')}"} for n, r in reports.items()
              for block in r.facts.get("blocks", ())]  # fmt: skip
    joined = dict(source.joined_by())
    return {FACT: [*kind.parts], **({JOINED_BY: joined} if joined else {}), "blocks": blocks}


@contextmanager
def opened_parts(
    backend: Backend, target: Target, folder: Path, built: bool, facts: Mapping[str, Any], prepack: bool = True
) -> Iterator[PartsEngine]:
    """All graphs of a folder as one engine, loaded and closed again."""
    engine = load_parts(backend, runner(backend, target, built), folder, facts, prepack)
    try:
        yield engine
    finally:
        engine.close()


def load_parts(
    backend: Backend, target: Target, folder: Path, facts: Mapping[str, Any], prepack: bool = True
) -> PartsEngine:
    """All graphs of a folder as one engine; `facts`: of its manifest."""
    kind = kind_of(facts)
    parts = [backend.load_part(folder, part, target, prepack) for part in kind.parts]
    return kind.engine(*parts, **facts.get(JOINED_BY, {}))


def _prove(
    source: Source, engine: PartsEngine, proofs: Mapping[str, Verification], backend: Backend, options: Options,
    seed: int, kind: Kind, folder: Path,
) -> Verification:  # fmt: skip
    def programs() -> PartsEngine:
        """Made anew from the settings of the parts' manifests."""
        made = (EngineFolder(folder / name, {}).remake(part)[1] for name, part in source.parts().items())
        return kind.engine(*map(StreamingEngine, made), **source.joined_by())

    where = str(options.target), ran_on(backend, options.target, options.build)
    return kind.prove(Joint(source, proofs, backend.precision(options.target), seed, *where, programs), engine)


def _require_of_this(report: Report, name: str, part: Report) -> None:
    """Raise M106 for a part that was made of another model, or in another way, than the engine. It is proven by its own
    manifest, which could allow it more."""
    own = {**report.settings, "part": name, "layout": "plain"}  # only all parts together have another layout
    settings = sorted(n for n in {*own, *part.settings} - _OWN_OF_PARTS if own.get(n) != part.settings.get(n))
    if part.source_hashes != report.source_hashes:
        settings.insert(0, "model")
    if settings:
        what = f"the {name} is a part of another engine: its {', '.join(settings)} is another"
        raise MoecError("M106", what, f"{name}/{MANIFEST}", AGAIN)


def prove_parts_again(
    folder: Path, report: Report, options: Options, source: Source, seed: int, one: Callable[[Path], Verification]
) -> Verification:
    """Prove all parts again, each with `one`, and all together, on other inputs.

    Raises:
        MoecError: M106 for parts that are not of this engine, or that are not what clients load.
    """
    backend, kind = find_backend(options.target, runtime=False, written=True), kind_of(report.facts)
    for part in kind.parts:
        _require_of_this(report, part, Report.read(folder / part / MANIFEST))
    backend.require_joined(folder, kind.parts)
    proofs = {part: one(folder / part) for part in kind.parts}
    with opened_parts(backend, options.target, folder, options.build, report.facts) as engine:
        return _prove(source, engine, proofs, backend, options, seed, kind, folder)
