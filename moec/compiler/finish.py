"""Finish an engine that `--no-build` left unfinished, or build it again for the runtime of this machine; proven before
it takes its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moec.compiler.engine_folder import EngineFolder, require_same_texts
from moec.compiler.fitted import as_recorded
from moec.compiler.parts import refuse_parts
from moec.compiler.prove_again import Question, asked_subject
from moec.compiler.proving import prove_folder, ran_on, require_run_here
from moec.compiler.publish import make_report, sizes_of_files, write_report
from moec.compiler.self_difference import explained_by_model
from moec.compiler.staging import staging
from moec.files.kept import unused
from moec.layouts import model_folder
from moec.progress import Progress
from moec.report.artefacts import parts
from moec.report.layers import with_layers
from moec.report.report import Report
from moec.targets.backend import find_backend


@unused()
def complete_engine(
    folder: Path,
    opening: Mapping[str, Any],
    model: str | None = None,
    progress: Progress | None = None,
    asked: Question | None = None,
    require_run: bool = False,
) -> Report:
    """Build what is missing in an engine's folder with the runtime of this machine, prove it, and put it in the old
    one's place. Quantized weights of the program that it is held to are computed anew, as in any later proof.

    Args:
        folder: what `compile` wrote.
        opening: arguments of `open_source`.
        model: where the source lies here, if not where the manifest says; its files must be the same.
        asked: the bounds of the proof, and a text, as of any later one; its inputs are the compile's.
        require_run: refuse before any work where the engine could not be run here on what it is for.

    Raises:
        MoecError: M301 or M302 where runtime or hardware are missing, M106 where the folder or the source was changed,
            M101 where the engine differs, M111 where only bounds of the manifest let it pass, or a check's package is
            not here, M113 where a run is required and cannot be. The folder is then as it was.
    """
    progress = progress or Progress()
    engine_folder = EngineFolder(folder, opening)
    refuse_parts(engine_folder.report, "build")
    find_backend(engine_folder.target, written=True)
    options = replace(engine_folder.options, build=True)
    if require_run:
        require_run_here(engine_folder.backend, options.target, options.build)
    asked = replace(asked or Question(), seed=options.seed)
    require_same_texts(engine_folder.report, options, ["calibration"] if asked.exam else ["text", "calibration"])
    source = engine_folder.source(model)
    captured, program = engine_folder.remake(source)
    subject = asked_subject(engine_folder, engine_folder.subject(source, captured, program), asked)
    with staging(folder, source.places) as new, explained_by_model(source):
        copy_artefacts(engine_folder.report, folder, new)
        progress.stage("build")
        facts = {
            **engine_folder.report.facts,
            **engine_folder.backend.finish(model_folder(new), engine_folder.target, options.optimize_for, progress),
        }
        facts = with_layers(facts, program)
        progress.done(sizes_of_files(model_folder(new)))
        ran = ran_on(engine_folder.backend, options.target, options.build)
        proof = prove_folder(replace(subject, ran_on=ran), engine_folder.backend, options, new, progress)
        proof = replace(proof, checks=(*proof.checks, *engine_folder.lost_checks(proof)))
        proof.require()
        report = make_report(
            source, options, [], facts, proof, engine_folder.backend, new, engine_folder.report.text_hashes
        )
        old = engine_folder.report
        report = replace(report, source=old.source, steps=old.steps, size=old.size, layers=old.layers)
        report = replace(report, environment=as_recorded(report.environment, old.environment))
        source.require_unchanged()
        return write_report(report, new)


def copy_artefacts(report: Report, folder: Path, new: Path) -> None:
    """The engine's files into another folder, as links where the file system has them; a file that is replaced there
    stays as it was here."""
    for artefact in parts(report.artefacts):  # the card is written anew
        path = new / artefact.name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / artefact.name, path)
        except OSError:
            shutil.copy2(folder / artefact.name, path)
