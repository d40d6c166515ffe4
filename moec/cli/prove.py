"""`moec verify`: is an engine right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moec.cli import completing
from moec.cli.console import common, emit, say, waiting
from moec.cli.report_file import PAGE, append, junit_form, publish, require_appendable, require_replaceable
from moec.cli.settings import WHOLE, model_options, run_option, text_options
from moec.errors import MoecError

if TYPE_CHECKING:
    from moec.proof.verification import Verification


_JUNIT = junit_form("verify")


@click.command("verify")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--against",
    shell_complete=completing.files,
    help="Another engine's folder or another model; the engine's own source by default.",
)
@click.option("--bisect", is_flag=True, help="Name the first pass, layer and expert that diverge.")
@click.option("--tolerance", type=float, help="Allowed max|d|/std(reference).")
@click.option("--seed", type=WHOLE, default=1, show_default=True, help="Of the inputs; the compile used 0.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    help="Write the engine's report with this proof in it, a page with plots.",
)
@click.option(
    "--junit",
    type=click.Path(path_type=Path),
    help="Write the proof as JUnit XML, one test case a check, for continuous integration.",
)
@click.option(
    "--summary",
    type=click.Path(path_type=Path),
    help="Append the proof as Markdown with plots, for the page of a job ($GITHUB_STEP_SUMMARY).",
)
@run_option
@text_options
@model_options
@common
def verify_command(
    engine: Path,
    against: str | None,
    bisect: bool,
    html: Path | None,
    junit: Path | None,
    summary: Path | None,
    require_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Prove ENGINE again: against the source in its manifest, or against another engine or model. Exit status 1 when it
    differs.

    With --text, say how good it is too: perplexity, KL divergence, top-1 agreement, agreement of the routers, error of
    each layer. Routers and layers are compared between the untouched model and the program that the engine was built
    from, since an engine shows outputs only. After quantize, the divergence is split: what changed weights cost with
    the untouched model's choices of experts, and the other way.
    """
    from moec import api

    if bisect and against is not None:
        what = "an engine is bisected along its own making, not another's"
        raise MoecError("M201", what, "--bisect, --against", "leave one of them out")
    _look_at(html, junit, summary)
    from moec.report.junit import junit as as_junit
    from moec.report.report import plain
    from moec.report.summary import job_summary

    try:
        with waiting("verify", quiet):
            result = api.verify(engine, against, **options)
    except MoecError as error:
        if junit:
            publish(junit, as_junit(str(engine), error), _JUNIT)
        raise
    if junit:
        publish(junit, as_junit(str(engine), result, require_run), _JUNIT)
    culprit = None
    if bisect:
        with waiting("bisect", quiet):
            culprit = replace(api.bisect(engine, **options), proof=_failure(result))
    if html:
        publish(html, api.page(engine, result), PAGE)
    if summary:
        append(summary, job_summary(replace(api.read_report(engine), proof=result)))
    not_run = _not_run(result) if require_run and result.ok else None
    if as_json:
        refusal = {"error": not_run.to_dict()} if not_run else {}
        said = {"verification": result.to_dict(), "bisect": culprit.to_dict() if culprit else None}
        emit(plain({"ok": result.ok and not not_run, **said, **refusal}))
    else:
        say(str(result))
        if culprit:
            say(str(culprit))
    if not_run:
        say(str(not_run), err=True)
    return 0 if result.ok and not not_run else 1


def _look_at(html: Path | None, junit: Path | None, summary: Path | None) -> None:
    """Raise M210 for a file that may not be written, before the proof takes its time."""
    if html:
        require_replaceable(html, PAGE)
    if junit:
        require_replaceable(junit, _JUNIT)
    if summary:
        require_appendable(summary)


def _failure(proof: Verification) -> str:
    """What a proof failed at; empty where it holds."""
    return proof.error.what if proof.error else ""


def _not_run(proof: Verification) -> MoecError | None:
    """What --require-run says of a proof; None where the engine ran on what it is for."""
    try:
        proof.where_run.require()
    except MoecError as error:
        return error
    return None
