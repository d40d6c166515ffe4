"""`moec check`: whether engines are still what their manifests say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moec.cli.annotations import annotation, are_wanted
from moec.cli.config import read_config
from moec.cli.console import common, emit, say
from moec.cli.overrides import config_option, overridden, set_option
from moec.cli.report_file import junit_form, publish, require_replaceable
from moec.cli.settings import run_option, trust_options
from moec.cli.terminal import TERMINAL
from moec.compiler.options import Options
from moec.errors import MoecError

UNREAD = "manifest"  # what is wrong where nothing could be compared


def _annotate(context: click.Context, parameter: click.Parameter, wanted: bool | None) -> None:
    TERMINAL.annotate = wanted  # errors that end the verb are annotated elsewhere, if at all


@click.command("check")
@click.argument("manifests", nargs=-1, required=True, type=click.Path(path_type=Path))
@config_option("A TOML file, or a preset, whose settings the engines must have been compiled with.")
@set_option
@click.option("--junit", type=click.Path(path_type=Path), help="Write what was compared as JUnit XML.")
@click.option(
    "--annotate/--no-annotate",
    default=None,
    expose_value=False,
    callback=_annotate,
    help="Print errors as annotations of GitHub's pages.  [default: where GITHUB_ACTIONS is true]",
)
@trust_options
@run_option
@common
def check_command(
    manifests: tuple[Path, ...],
    config: Path | None,
    overrides: tuple[str, ...],
    junit: Path | None,
    require_run: bool,
    as_json: bool,
    quiet: bool,
    **opening: Any,
) -> int:
    """Fail when a model, a text, a setting or an engine's file is no longer what MANIFESTS say.

    For hooks before a commit and for pipelines: hashes only, nothing is run. Exit status 1 when something changed, 2
    when one of MANIFESTS names no engine; the others are compared all the same.
    """
    from moec.compiler.check import checked, manifest_of
    from moec.report.junit import junit_of_checks

    if junit:
        require_replaceable(junit, junit_form("check"))
    wanted = overridden(read_config(config) if config else {}, overrides, has_pass=False)
    Options.of(dict(wanted))  # a mistake in it is no manifest's
    found, status = dict[str, dict[str, MoecError | None]](), 0
    for manifest in manifests:
        try:
            found[str(manifest)] = checked(manifest, wanted, opening, require_run)
        except MoecError as unread:  # the others are looked at all the same
            found[str(manifest)] = {UNREAD: unread}
            status = max(status, unread.exit_code)
    errors = {name: [error for error in items.values() if error] for name, items in found.items()}
    if junit:
        publish(junit, junit_of_checks(found), junit_form("check"))
    if as_json:
        emit({"manifests": {name: [error.to_dict() for error in each] for name, each in errors.items()}})
    else:
        for name, each in errors.items():
            say("\n".join(map(str, each)) or f"{name}  as it was", err=UNREAD in found[name])
    if are_wanted(TERMINAL.annotate):
        for name, each in errors.items():
            for error in each:
                say(annotation(error, manifest_of(Path(name))), err=as_json)
    return status or (1 if any(errors.values()) else 0)
