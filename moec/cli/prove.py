"""`moec verify`: is an engine right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moec.cli.console import common, emit, say
from moec.cli.settings import WHOLE, model_options, text_options
from moec.errors import MoecError


@click.command("verify")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--against", help="Another engine's folder or another model; the engine's own source by default.")
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
@text_options
@model_options
@common
def verify_command(
    engine: Path,
    against: str | None,
    bisect: bool,
    html: Path | None,
    junit: Path | None,
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
    from moec.report.junit import junit as as_junit
    from moec.report.report import plain

    try:
        result = api.verify(engine, against, **options)
    except MoecError as error:
        if junit:
            _publish(junit, as_junit(str(engine), error))
        raise
    if junit:
        _publish(junit, as_junit(str(engine), result))
    opening = {name: options[name] for name in ("inputs", "trust_remote_code", "allow_pickle", "cache")}
    bounds = {name: options[name] for name in ("seed", "tolerance", "max_kl")}
    culprit = api.bisect(engine, **bounds, **opening) if bisect else None
    if html:
        _publish(html, api.page(engine, result))
    if as_json:
        emit(
            plain({"ok": result.ok, "verification": result.to_dict(), "bisect": culprit.to_dict() if culprit else None})
        )
    else:
        say(str(result))
        if culprit:
            say(str(culprit))
    return 0 if result.ok else 1


def _publish(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MoecError(
            "M210", f"the report cannot be written: {error.strerror}", str(path), "choose another file"
        ) from error
