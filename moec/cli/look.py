"""`moec inspect`, `moec explain`, `moec doctor`: what can be known without building anything."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import click

from moec import registry
from moec.cli import completing
from moec.cli.console import common, emit, say, say_text, waiting
from moec.cli.settings import model_options
from moec.errors import MoecError


@click.command("inspect")
@click.argument("model", shell_complete=completing.files)
@click.option("--markdown", is_flag=True, help="Of an engine: its whole report as Markdown, e.g. for a job's summary.")
@model_options
@common
def inspect_command(model: str, markdown: bool, as_json: bool, quiet: bool, **opening: Any) -> None:
    """Show what MODEL (or an engine's folder) holds: blocks, routing, parameters, FLOPs. Loads no weights."""
    from moec.cli.views import engine_view, model_view

    if (Path(model) / "moec.json").exists():
        from moec.api import read_report
        from moec.report.page import markdown as as_markdown

        report = read_report(model)
        emit(report.to_dict()) if as_json else say_text(as_markdown(report) if markdown else engine_view(report, model))
        return
    if markdown:
        fix = "compile it first: moec compile MODEL -o FOLDER"
        raise MoecError("M201", "only an engine has a report", f"--markdown, {model}", fix)
    from moec.compiler.programs import inspect  # not `moec.api`, which brings what compiles and proves

    with waiting("inspect", quiet):
        found = inspect(model, **opening)
    emit(found.to_dict()) if as_json else say_text(model_view(found))


@click.command("explain")
@click.argument("name", shell_complete=completing.names)
@common
def explain_command(name: str, as_json: bool, quiet: bool) -> None:
    """Explain NAME: a pass, a target, a preset, an operator or an error code.

    What it does, what each of its options takes and means, and an example.
    """
    from moec.cli.explain import explain

    data, text = explain(name)
    emit(data) if as_json else say(text)


@click.command("doctor")
@common
def doctor_command(as_json: bool, quiet: bool) -> int:
    """Show what this machine can build and run. Exit status 3 when no target is usable."""
    from importlib.metadata import PackageNotFoundError, version

    from moec.targets.target import Target

    packages = {}
    for package in ("moec", "torch", "transformers", "safetensors", "numpy"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "missing"
    probes = {
        name: dataclasses.asdict(registry.find("backends", name)().probe(Target(name)))
        for name in registry.names("backends")
    }
    usable = any(p["available"] for p in probes.values())
    if as_json:
        emit(
            {
                "python": platform.python_version(),
                "machine": platform.machine(),
                "packages": packages,
                "targets": probes,
            }
        )
        return 0 if usable else 3
    say(
        f"python {platform.python_version()} on {platform.machine()}, "
        + ", ".join(f"{k} {v}" for k, v in packages.items())
    )
    for name, probe in probes.items():
        state = (
            f"ok: {', '.join(probe['devices'])}"
            if probe["available"]
            else "; ".join(filter(None, [f"missing: {probe['missing']}", probe["install"], probe["later"]]))
        )
        say(f"{name:<12} {state}")
        for lack in probe["lacking"]:
            say(f"{'':<12} lacks {lack}")
    if not usable:
        raise MoecError("M301", "no target can be used here", "moec doctor", next(iter(probes.values()))["install"])
    return 0
