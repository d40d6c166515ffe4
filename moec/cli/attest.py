"""`moec attest`: where an engine comes from, for those who have to decide whether to run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moec.cli.console import common, emit, say
from moec.cli.report_file import Form, json_form, publish, require_replaceable
from moec.errors import MoecError


@click.command("attest")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The folder to write to.  [default: beside ENGINE]")
@click.option("--builder", metavar="URI", help="Who compiled ENGINE: a workflow, a machine.")
@click.option(
    "--check", type=click.Path(path_type=Path), help="Write nothing; hold ENGINE's files against this statement."
)
@common
def attest_command(
    engine: Path, out: Path | None, builder: str | None, check: Path | None, as_json: bool, quiet: bool
) -> None:
    """Write where ENGINE comes from: ENGINE.intoto.json, an in-toto statement with SLSA's provenance, and
    ENGINE.cdx.json, a CycloneDX bill of materials.

    Both are made from the manifest and the files, and are the same each time. Sign them, or the folder, with cosign or
    model-signing. Exit status 1 when a file is not what the manifest, or the statement of --check, says.
    """
    from moec import api
    from moec.report.provenance import BUILDER, check_statement

    report = api.read_report(engine)
    if check:
        names = check_statement(check, engine)
        emit({"ok": True, "files": names}) if as_json else say(f"{engine}  {len(names)} files are as {check} says")
        return
    written = {kind: str(path) for kind, path in _write(report, engine, out, builder or BUILDER).items()}
    emit({"ok": True, **written}) if as_json else say("\n".join(written.values()))


def _write(report: Any, engine: Path, out: Path | None, builder: str) -> dict[str, Path]:
    from moec.report.artefacts import check_artefacts
    from moec.report.bom import bill_of_materials
    from moec.report.provenance import statement

    check_artefacts(report.artefacts, engine)
    if not report.ok:
        raise MoecError("M101", f"the proof fails: {report.headline()}", str(engine), "compile the model again")
    place, name = out or engine.resolve().parent, engine.resolve().name
    if place.resolve().is_relative_to(engine.resolve()):
        what = "the statement speaks of the files in the engine's folder, and cannot be one"
        raise MoecError("M210", what, str(place), "choose another --out, beside the engine")
    paths = {"statement": place / f"{name}.intoto.json", "bom": place / f"{name}.cdx.json"}
    forms = _forms()
    for kind, path in paths.items():
        require_replaceable(path, forms[kind])
    texts = {"statement": statement(report, engine, builder), "bom": bill_of_materials(report, engine)}
    place.mkdir(parents=True, exist_ok=True)
    for kind, path in paths.items():
        publish(path, texts[kind], forms[kind])
    return paths


def _forms() -> dict[str, Form]:
    """How the files of an engine of ours are told from those of cosign, GitHub and other makers of bills."""
    from moec.report.bom import FORMAT
    from moec.report.provenance import BUILD_TYPE, STATEMENT

    return {
        "statement": json_form(
            "statement",
            lambda data: (data["_type"], data["predicate"]["buildDefinition"]["buildType"]) == (STATEMENT, BUILD_TYPE),
        ),
        "bom": json_form(
            "bill of materials",
            lambda data: (
                data["bomFormat"] == FORMAT
                and any(tool["name"] == "moec" for tool in data["metadata"]["tools"]["components"])
            ),
        ),
    }
