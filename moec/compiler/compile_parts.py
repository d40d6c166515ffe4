"""Compile a model to an engine of several graphs: each part alone, then all together.

Each part is an engine's folder of its own, inside the whole one's. The graphs lie beside each other on top, under the
names that clients look for; their weights are those of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moec.compiler.options import Options
from moec.compiler.parts import FACT, JOINED_BY, KINDS, Kind, opened_parts, prove_parts
from moec.compiler.publish import make_report, write_report
from moec.compiler.staging import check_out, staging
from moec.errors import MoecError
from moec.frontend.source import Source
from moec.layouts import genai_images
from moec.layouts.arrange import genai_or_plain
from moec.pipeline.pipeline import Pipeline
from moec.program.encoder_decoder import DECODER
from moec.progress import Progress
from moec.report.report import Report
from moec.targets.backend import Backend, find_backend

CompileOne = Callable[[Source, Options, Path], Report]


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
            proof = prove_parts(source, engine, proofs, backend, options, options.seed, kind, folder)
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
    for name in ("save_hf", "save_gguf"):
        if getattr(options, name):
            what = f"--{name.replace('_', '-')} is for a model of one graph"
            raise MoecError("M201", what, name, f"leave it out; {way_out}")
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
