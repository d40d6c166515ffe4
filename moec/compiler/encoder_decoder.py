"""An engine of two graphs: an encoder and a decoder, each compiled and proven alone, then both together.

Each part is an engine's folder of its own, inside the whole one's. The graphs lie beside each other on top, under the
names that optimum looks for; their weights are those of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from moec.compiler.engine_folder import EngineFolder
from moec.compiler.options import Options
from moec.compiler.proving import ran_on, runner
from moec.compiler.publish import make_report, write_report
from moec.compiler.staging import check_out, staging
from moec.errors import MoecError
from moec.execution.encoder_decoder import EncoderDecoderEngine
from moec.execution.streaming import StreamingEngine
from moec.frontend.source import Source
from moec.program.encoder_decoder import DECODER, ENCODER, PARTS
from moec.progress import Progress
from moec.proof.encoder_decoder import Programs, prove_encoder_decoder
from moec.proof.verification import Verification
from moec.report.artefacts import MANIFEST
from moec.report.report import Report
from moec.targets.backend import Backend, find_backend
from moec.targets.target import Target

FACT = "parts"  # of a manifest: the parts of an engine of several graphs
_OWN_OF_PARTS = {"verify"}  # settings that each part decides: by its size
CompileOne = Callable[[Source, Options, Path], Report]


def is_encoder_decoder(report: Report) -> bool:
    """Whether an engine has several graphs, as its manifest says. Raises M106 for parts that moec does not write."""
    found = report.facts.get(FACT)
    if found is not None and found != [*PARTS]:
        raise MoecError("M106", f"an engine of the parts {found!r}", "moec.json", "compile the engine again")
    return found is not None


def refuse_parts(report: Report, verb: str, flag: str = "") -> None:
    """Raise M201 for what is done with one graph, where an engine has several; the way out names a part."""
    if is_encoder_decoder(report):
        command = f"moec {verb} ENGINE/{ENCODER} {flag}".rstrip()
        what = f"this engine has two graphs, and `{f'moec {verb} {flag}'.rstrip()}` looks at one"
        raise MoecError("M201", what, report.source, f"name a part: {command}, then ENGINE/{DECODER}")


def compile_encoder_decoder(
    source: Source, parts: Mapping[str, Source], options: Options, out: Path, one: CompileOne, progress: Progress
) -> Report:
    """Compile and prove each part with `one`, then both together; nothing appears under `out` unless all went well.

    Raises:
        MoecError: M201 and M208 for what two graphs do not go with; else with the code of the stage that ended it.
    """
    backend = find_backend(options.target, options.build)
    _require(options, backend)
    check_out(out, source.places)
    with staging(out, source.places) as folder:
        reports = {}
        for name, part in parts.items():
            progress.detail(f"the {name}:")
            reports[name] = one(part, replace(options, layout="plain", part=name), folder / name)
        source.write_companions(folder)
        backend.join(folder, PARTS)
        progress.stage("verify")
        proofs = {name: report.proof for name, report in reports.items()}
        with opened_parts(backend, options.target, folder, options.build) as engine:
            proof = _prove(source, engine, proofs, backend, options, options.seed, _programs(folder, parts))
        proof.require()
        progress.done("; ".join(["both parts together", *proof.short]))
        options = replace(options, layout="plain")
        report = make_report(source, options, [], _facts(reports), proof, backend, folder, {})
        steps = tuple({**s, "name": f"{n}: {s['name']}"} for n, r in reports.items() for s in r.steps)
        source.require_unchanged()
        return write_report(replace(report, steps=steps), folder)


def _require(options: Options, backend: Backend) -> None:
    way_out = "compile its forward alone with --no-cache, or one part with --part"
    if not backend.joins or not options.build:
        what = f"{backend.name} has no engines of two graphs" if options.build else "both graphs are built at once"
        raise MoecError("M208", f"this model is an encoder and a decoder, and {what}", str(options.target), way_out)
    if options.layout not in (None, "plain"):
        what = f"an encoder and a decoder are laid out as optimum loads them, not for {options.layout}"
        raise MoecError("M208", what, f"layout {options.layout}", f"use --layout plain, or {way_out}")
    if options.save_hf:
        raise MoecError("M201", "--save-hf is for a model of one graph", "save_hf", f"leave it out; {way_out}")
    if options.text:
        what = "--text is for causal language models, and this is an encoder and a decoder"
        raise MoecError("M201", what, "text", "leave it out: each part is judged by its outputs")
    if options.calibration:
        fix = "leave it out, or compile the encoder alone with --part encoder"
        raise MoecError("M201", "--calibration is for a model of one graph", "calibration", fix)
    for item in options.pipeline.passes:
        if item.needs_calibration():
            without = item.without_data()
            what = f"{item.name} needs a text to calibrate on, which an encoder and a decoder together do not take"
            fix = "leave it out, or compile the encoder alone with --part encoder and --calibration FILE"
            raise MoecError("M203", what, str(item), f"use {without} in its place; or {fix}" if without else fix)


def _facts(reports: Mapping[str, Report]) -> dict[str, Any]:
    blocks = [{**block, "node": f"{n}: {block.get('node', '')}"} for n, r in reports.items()
              for block in r.facts.get("blocks", ())]  # fmt: skip
    return {FACT: [*PARTS], "blocks": blocks}


@contextmanager
def opened_parts(
    backend: Backend, target: Target, folder: Path, built: bool, prepack: bool = True
) -> Iterator[EncoderDecoderEngine]:
    """Both graphs of a folder as one engine, loaded and closed again."""
    engine = load_parts(backend, runner(backend, target, built), folder, prepack)
    try:
        yield engine
    finally:
        engine.close()


def load_parts(backend: Backend, target: Target, folder: Path, prepack: bool = True) -> EncoderDecoderEngine:
    """Both graphs of a folder as one engine."""
    encoder, decoder = (backend.load_part(folder, part, target, prepack) for part in PARTS)
    return EncoderDecoderEngine(encoder, decoder)


def _require_of_this(report: Report, name: str, part: Report) -> None:
    """Raise M106 for a part that was made of another model, or in another way, than the engine. It is proven by its own
    manifest, which could allow it more."""
    own = {**report.settings, "part": name}
    settings = sorted(n for n in {*own, *part.settings} - _OWN_OF_PARTS if own.get(n) != part.settings.get(n))
    if part.source_hashes != report.source_hashes:
        settings.insert(0, "model")
    if settings:
        what = f"the {name} is a part of another engine: its {', '.join(settings)} is another"
        raise MoecError("M106", what, f"{name}/{MANIFEST}", "compile the engine again: moec compile --from moec.json")


def _prove(
    source: Source,
    engine: EncoderDecoderEngine,
    proofs: dict[str, Verification],
    backend: Backend,
    options: Options,
    seed: int,
    programs: Programs,
) -> Verification:
    where = str(options.target), ran_on(backend, options.target, options.build)
    return prove_encoder_decoder(source, engine, proofs, backend.precision(options.target), seed, *where, programs)


def _programs(folder: Path, parts: Mapping[str, Source]) -> Programs:
    """Both parts' programs in PyTorch, made anew from their manifests' settings when they are asked for."""

    def made() -> EncoderDecoderEngine:
        return EncoderDecoderEngine(
            *(StreamingEngine(EngineFolder(folder / name, {}).remake(part)[1]) for name, part in parts.items())
        )

    return made


def prove_encoder_decoder_again(
    folder: Path, report: Report, options: Options, source: Source, seed: int, one: Callable[[Path], Verification]
) -> Verification:
    """Prove both parts again, each with `one`, and both together, on other inputs.

    Raises:
        MoecError: M106 for parts that are not of this engine, or that are not what clients load.
    """
    backend = find_backend(options.target, runtime=False, written=True)
    for part in PARTS:
        _require_of_this(report, part, Report.read(folder / part / MANIFEST))
    backend.require_joined(folder, PARTS)
    proofs = {part: one(folder / part) for part in PARTS}
    with opened_parts(backend, options.target, folder, options.build) as engine:
        return _prove(source, engine, proofs, backend, options, seed, _programs(folder, source.parts()))
