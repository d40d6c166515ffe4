"""`moec inspect`, `moec explain`, `moec doctor`: what can be known without building anything."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import click

from moec import registry
from moec.cli.console import common, emit, say
from moec.cli.settings import model_options
from moec.errors import MoecError


@click.command("inspect")
@click.argument("model")
@model_options
@common
def inspect_command(model: str, as_json: bool, quiet: bool, **opening: Any) -> None:
    """Show what MODEL (or an engine's folder) holds: blocks, routing, parameters, FLOPs. Loads no weights."""
    from moec import api
    from moec.report.page import markdown

    if (Path(model) / "moec.json").exists():
        report = api.read_report(model)
        emit(report.to_dict()) if as_json else say(markdown(report))
        return
    found = api.inspect(model, **opening)
    if as_json:
        emit(found.to_dict())
        return
    for block in found.blocks:
        rule = block.routing
        routing = (
            f"{rule['score']} top-{rule['top_k']} {rule['combine']}"
            + (f", {rule['groups']} groups" if rule["groups"] > 1 else "")
            if rule
            else f"top-{block.top_k}"
        )
        mixture = f"{block.experts} experts, {routing}" if block.kind != "ffn" else "dense"
        gate = "gated " if block.activation.get("gated") else ""
        widths = f"{block.hidden} → {block.intermediate} " if block.hidden else ""
        say(
            f"{block.kind:<8} {block.module}  {mixture}  {widths}{gate}{block.activation.get('name', '')}"
            f"  {_millions(block.parameters)}"
        )
    say(
        f"parameters {_millions(found.parameters)}, active a token {_millions(found.active_parameters)}"
        f" ({_millions(found.active_without_embedding)} without the input embedding),"
        f" {found.flops_per_token / 1e6:,.1f} MFLOP a token, {found.size_bytes / 2**20:,.1f} MiB"
    )
    for miss in found.misses:
        say(f"not matched: {miss.pass_name} at {miss.node}: {miss.reason}")


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


@click.command("explain")
@click.argument("name")
@common
def explain_command(name: str, as_json: bool, quiet: bool) -> None:
    """Explain a pass (its options and contract), a target (its options), a preset or an error code."""
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
