"""`moec verify`, `moec bench`, `moec run`: what is done with engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moec.cli.console import common, emit, model_options
from moec.errors import MoecError


@click.command("verify")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--against", help="Another engine's folder or another model; the engine's own source by default.")
@click.option("--bisect", is_flag=True, help="Name the first pass, layer and expert that diverge.")
@click.option("--tolerance", type=float, help="Allowed max|d|/std(reference).")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the inputs; the compile used 0.")
@model_options
@common
def verify_command(engine: Path, against: str | None, bisect: bool, tolerance: float | None, seed: int, as_json: bool, quiet: bool, **opening: Any) -> int:
    """Prove ENGINE again: against the source in its manifest, or against another engine or model. Exit status 1 when it differs."""
    from moec import api

    result = api.verify(engine, against, seed=seed, tolerance=tolerance, **opening)
    culprit = api.bisect(engine, seed=seed, **opening) if bisect else None
    if as_json:
        emit({"ok": result.ok, "verification": result.to_dict(), "bisect": culprit.to_dict() if culprit else None})
    else:
        click.echo(str(result))
        if culprit:
            click.echo(str(culprit))
    return 0 if result.ok else 1


@click.command("bench")
@click.argument("engines", nargs=-1, required=True)
@click.option(
    "--size", "sizes", multiple=True, metavar="DIM=N", help="Size of a dynamic dimension, e.g. sequence=16; batch is 1 and the others 128 by default."
)
@click.option("--runs", type=int, default=30, show_default=True, help="Timed runs of each engine.")
@click.option("--eager", is_flag=True, help="Put the untouched model in eager PyTorch beside them.")
@common
def bench_command(engines: tuple[str, ...], sizes: tuple[str, ...], runs: int, eager: bool, as_json: bool, quiet: bool) -> None:
    """Time ENGINES beside each other, in turns, on the same inputs; the ratios are what counts on a shared machine."""
    from moec import api

    result = api.bench(engines, sizes=_sizes(sizes), runs=runs, eager=eager)
    emit(result.to_dict()) if as_json else click.echo(str(result))


def _sizes(texts: tuple[str, ...]) -> dict[str, int]:
    pairs = [text.partition("=") for text in texts]
    bad = next((text for text, (name, _, size) in zip(texts, pairs, strict=True) if not name or not size.isdigit() or int(size) < 1), None)
    if bad is not None:
        raise MoecError("M201", f"cannot read the size {bad!r}", "--size", "write DIM=N with N of 1 or more, e.g. --size batch=4")
    return {name: int(size) for name, _, size in pairs}


@click.command("run")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--inputs", "file", type=click.Path(path_type=Path), help="An .npz with one array an input; random inputs by default.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the outputs into this .npz.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random inputs.")
@common
def run_command(engine: Path, file: Path | None, output: Path | None, seed: int, as_json: bool, quiet: bool) -> None:
    """Run ENGINE once and print the shape, mean and spread of each output."""
    import numpy as np

    from moec import api

    opened = api.load(engine)
    if file:
        try:
            inputs = dict(np.load(file))
        except (OSError, ValueError) as error:
            raise MoecError("M211", f"not a readable .npz: {error}", str(file), "write it with numpy.savez(file, name=array, …)") from error
    else:
        inputs = {k: v.numpy() for k, v in api.sample(engine, seed).items()}
    outputs = opened(**inputs)
    if output:
        np.savez(output, **outputs)
    rows = {k: {"shape": list(v.shape), "dtype": str(v.dtype), "mean": float(v.mean()), "std": float(v.std())} for k, v in outputs.items()}
    if as_json:
        emit({"outputs": rows})
    else:
        for name, row in rows.items():
            click.echo(f"{name}: {row['dtype']}{row['shape']} mean {row['mean']:.4g} std {row['std']:.4g}")
