"""Whether an engine is still what its manifest says: before a commit, without running anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from moec.compiler.engine_folder import compare_recorded, options_of, require_same_texts
from moec.compiler.options import Options
from moec.errors import MoecError
from moec.proof.where_run import WhereRun
from moec.report.artefacts import MANIFEST, check_artefacts
from moec.report.report import Report

Step = Callable[[], Any]


def checked(
    manifest: Path, wanted: Mapping[str, Any], opening: Mapping[str, Any], require_run: bool = False
) -> dict[str, MoecError | None]:
    """What was held against a manifest, by name, and what is wrong with it.

    The model's files, the texts and the engine's own files are hashed, the proof's verdict is found anew from its
    figures, and the settings are compared. No weight is loaded and no engine runs: `moec verify` proves.

    Args:
        manifest: an engine's `moec.json`, or its folder. Of a manifest that lies alone, as in a repository that does
            not keep engines, no engine's files are asked for.
        wanted: settings by name that the engine must have been compiled with.
        opening: arguments of `open_source`.
        require_run: whether an engine that has not run on what it is for is a problem (M113).

    Raises:
        MoecError: M201 where no engine lies there, M106 when the manifest cannot be read.
    """
    path = manifest_of(manifest)
    report = Report.read(path)
    run = [("run", WhereRun(report.target, report.proof.ran_on).require)] if require_run else []
    return {name: _error_of(step) for name, step in (*_steps(report, path, wanted, opening), *run)}


def manifest_of(place: Path) -> Path:
    """The manifest that a user named by its own path, or by its folder's."""
    return place / MANIFEST if place.is_dir() else place


def _steps(
    report: Report, path: Path, wanted: Mapping[str, Any], opening: Mapping[str, Any]
) -> Iterator[tuple[str, Step]]:
    yield "proof", partial(_require_proof, report, path)
    yield "model", partial(compare_recorded, report, opening)
    yield "text", lambda: require_same_texts(report, options_of(report))
    if any((path.parent / artefact.name).exists() for artefact in report.artefacts):
        yield "files", partial(check_artefacts, report.artefacts, path.parent)
    plain = Options.of(dict(wanted)).to_plain()
    for name in (name for name in wanted if name in plain):  # not those that no manifest keeps
        yield f"setting {name}", partial(_require_setting, report, path, name, plain[name])


def _error_of(step: Step) -> MoecError | None:
    try:
        step()
    except MoecError as error:
        return error
    return None


def _require_proof(report: Report, path: Path) -> None:
    if not report.ok:
        raise MoecError("M101", f"the proof fails: {report.headline()}", str(path), "compile the model again")


def _require_setting(report: Report, path: Path, name: str, value: Any) -> None:
    found = report.settings.get(name)
    if value != found:
        what = f"{name} is {value!r} now; the engine was compiled with {found!r}"
        raise MoecError("M112", what, str(path), "compile the model again")
