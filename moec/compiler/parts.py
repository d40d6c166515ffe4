"""Engines of several graphs: an encoder and a decoder, or what reads images, what puts them among tokens, and a
decoder. How they are opened, and proven together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moec.compiler.engine_folder import EngineFolder
from moec.compiler.options import Options
from moec.compiler.proving import ran_on, runner
from moec.errors import AGAIN, MoecError
from moec.execution.encoder_decoder import EncoderDecoderEngine
from moec.execution.parts import PartsEngine
from moec.execution.streaming import StreamingEngine
from moec.execution.vision_language import VisionLanguageEngine
from moec.frontend.source import Source
from moec.program.encoder_decoder import PARTS
from moec.program.vision_language import VISION_PARTS
from moec.proof.encoder_decoder import prove_encoder_decoder
from moec.proof.joint import Joint
from moec.proof.verification import Verification
from moec.proof.vision_language import prove_vision_language
from moec.report.artefacts import MANIFEST
from moec.report.report import Report
from moec.targets.backend import Backend, find_backend
from moec.targets.target import Target

FACT = "parts"  # of a manifest: the parts of an engine of several graphs
JOINED_BY = "joined_by"  # of a manifest: see `Source.joined_by`
_OWN_OF_PARTS = {"verify"}  # settings that each part decides: by its size


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


def prove_parts(
    source: Source, engine: PartsEngine, proofs: Mapping[str, Verification], backend: Backend, options: Options,
    seed: int, kind: Kind, folder: Path,
) -> Verification:  # fmt: skip
    """The proof of all parts, with those of each among its checks; `folder` holds them."""

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
        return prove_parts(source, engine, proofs, backend, options, seed, kind, folder)
