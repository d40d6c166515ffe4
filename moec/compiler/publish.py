"""What a compilation writes beside the engine: companions, layout, checkpoint, report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from moec.compiler.fitted import where_fitted
from moec.compiler.options import Options
from moec.compiler.proving import runner
from moec.compiler.staging import PAGE, as_refusal, require_free
from moec.files.exchange import move
from moec.files.workplace import workplace
from moec.frontend.source import Source
from moec.layouts import arrange
from moec.layouts.facts import CARD
from moec.layouts.triton import LAYOUTS as TRITON_LAYOUTS
from moec.pipeline.pipeline import StepReport
from moec.program.program import Program
from moec.progress import Progress
from moec.proof.verification import Verification
from moec.report.artefacts import MANIFEST, hash_artefact, hash_artefacts, parts
from moec.report.card import model_card
from moec.report.environment import environment
from moec.report.page import html
from moec.report.report import Report, step_facts
from moec.shown import size_of
from moec.targets.backend import Backend


@contextmanager
def taken_back() -> Iterator[list[Path]]:
    """A list for what gets its name before the block ends; where it ends badly, it is removed again, so that a refusal
    leaves nothing behind."""
    published: list[Path] = []
    try:
        yield published
    except BaseException:
        for path in published:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        raise


@contextmanager
def handed_over(
    program: Program, source: Source, options: Options, published: list[Path], progress: Progress
) -> Iterator[None]:
    """Write the program for other engines where that is asked for, see `_written`: as a checkpoint in its source's
    form, and as a GGUF file."""

    def save_hf(path: Path) -> None:
        progress.stage("checkpoint")
        said = source.save_checkpoint(program, path, options.hf_format, progress)
        progress.done("; ".join((sizes_of_files(path), *said)))

    def save_gguf(path: Path) -> None:
        progress.stage("gguf")
        progress.done("; ".join(source.save_gguf(program, path, options.gguf_floats)))

    with ExitStack() as stack:
        if options.save_hf:
            stack.enter_context(_written(options.save_hf, save_hf, published))
        if options.save_gguf:
            stack.enter_context(_written(options.save_gguf, save_gguf, published))
        yield


@contextmanager
def _written(path: Path, write: Callable[[Path], None], published: list[Path]) -> Iterator[None]:
    """Write something early, so that a refusal costs nothing. It gets its name when the block ends well, and is then
    added to `published`, see `taken_back`. Raises M210 where something has that name already, before the work or after
    it."""
    out = path.resolve()
    with ExitStack() as stack:
        with as_refusal(out.parent, out):
            place = stack.enter_context(workplace(out))
        require_free(out)
        write(place / out.name)
        yield
        require_free(out)
        with as_refusal(out.parent, out):
            move(place / out.name, out)
        published.append(out)


def lay_out(source: Source, program: Program, options: Options, backend: Backend, folder: Path) -> None:
    """Put the model's own files beside a built engine, and lay the folder out for the software that is to run it."""
    source.write_companions(folder)
    outputs, target = backend.outputs(folder), options.target
    layout = options.layout or "plain"
    shared = layout == "genai" and backend.shares_cache(folder)  # nobody else is told
    joined = layout not in TRITON_LAYOUTS or backend.joins_texts(folder)
    facts = replace(source.facts().assuming(program.assumptions), joined=joined)
    settings = backend.client_settings(target)
    arrange(layout, folder, program.inputs, outputs, facts, target.device or "cpu", target.threads, shared, settings)


def make_report(
    source: Source,
    options: Options,
    steps: list[StepReport],
    facts: dict[str, Any],
    proof: Verification,
    backend: Backend,
    folder: Path,
    text_hashes: dict[str, str],
) -> Report:
    """Everything that is known of the engine, without anything that changes from run to run. `text_hashes`: SHA-256 of
    the texts as they were read: an engine can be made again only from the same."""
    ran = runner(backend, options.target, options.build)
    otherwise = facts.get("stand_in", ()) if ran != options.target else ()
    return Report(
        source=source.text,
        settings=options.to_plain(),
        proof=proof,
        text_hashes=text_hashes,
        source_hashes=source.hashes,
        account=source.account().to_plain(),
        steps=step_facts(steps),
        facts={**facts, "verified_by": ", ".join([str(ran), *otherwise])},
        environment=environment(backend.probe(options.target).versions) | where_fitted(options.pipeline),
        artefacts=hash_artefacts(folder),
    )


def write_report(report: Report, folder: Path) -> Report:
    """Write the model card, the manifest and the page into an engine's folder. Returns the report with the card among
    its files."""
    (folder / CARD).write_text(model_card(report), encoding="utf-8")
    files = (*parts(report.artefacts), hash_artefact(folder, CARD))
    report = replace(report, artefacts=tuple(sorted(files, key=lambda file: PurePath(file.name))))
    (folder / MANIFEST).write_text(report.to_json(), encoding="utf-8")
    (folder / PAGE).write_text(html(report), encoding="utf-8")
    return report


def sizes_of_files(folder: Path) -> str:
    """The files of a folder with their sizes, in a line for the terminal."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return ", ".join(f"{path.name} {size_of(path.stat().st_size)}" for path in files)
