"""`moec compile`, `moec build`: engines, from a model or from what was left unfinished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moec.cli.console import common, emit, model_options, progress, text_options
from moec.errors import MoecError


@click.command("compile")
@click.argument("model", required=False)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The engine folder to write.")
@click.option(
    "--target",
    default="onnxruntime",
    show_default=True,
    help="Runtime, device and options, e.g. onnxruntime:cuda,precision=fp16.",
)
@click.option(
    "--pass",
    "passes",
    multiple=True,
    help='Passes before the target\'s own, e.g. "upcycle(experts=8, top_k=2)". Repeatable.',
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="A TOML file, or the name of a preset, with target, seed and [[pass]] tables.",
)
@click.option("--from", "manifest", type=click.Path(path_type=Path), help="Rebuild the engine of this moec.json.")
@click.option(
    "--optimize-for",
    type=click.Choice(["latency", "throughput"]),
    default=None,
    help="Few tokens a call, or many.  [default: latency]",
)
@click.option(
    "--verify",
    type=click.Choice(["auto", "full", "streamed"]),
    default="auto",
    show_default=True,
    help="How the untouched model is run for the proof.",
)
@click.option("--tolerance", type=float, help="Allowed max|d|/std(reference); the precision's own by default.")
@click.option("--seed", type=int, default=None, help="For everything random.  [default: 0]")
@click.option(
    "--layout",
    type=click.Choice(["plain", "genai", "triton"]),
    default=None,
    help="For which clients.  [default: genai for decoders, else plain]",
)
@click.option(
    "--dump",
    type=click.Path(path_type=Path),
    help="Write the program after every pass, and the graph after every step of its lowering, as text.",
)
@click.option(
    "--no-build",
    is_flag=True,
    help="Leave the part that needs the target's runtime or GPU to `moec build`, on the machine that has it.",
)
@click.option(
    "--save-hf", type=click.Path(path_type=Path), help="Also write the upcycled or quantized model as a checkpoint."
)
@click.option(
    "--calibration", help="A text for the passes that need data (UTF-8, or token ids in .npy, .npz, .safetensors)."
)
@click.option(
    "--calibration-tokens", type=int, help="Tokens of --calibration to use at most, 0 for all.  [default: 16384]"
)
@text_options
@model_options
@common
def compile_command(
    model: str | None, out: Path, manifest: Path | None, config: Path | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Compile MODEL into a verified engine folder.

    MODEL is a Hugging Face folder or hub id, path/to/file.py:callable[:sample_inputs], or a .pt2 file. The engine
    appears under --out only when it was proven equal to the untouched model; else the exit status is not 0 and nothing
    is there.
    """
    from moec import api
    from moec.cli.settings import settings_of

    opening = {"trust_remote_code": options.pop("trust_remote_code"), "allow_pickle": options.pop("allow_pickle")}
    cache, build = options.pop("cache"), not options.pop("no_build")
    if manifest:
        report = api.rebuild(manifest, out, progress=progress(quiet), **opening)
    elif model:
        settings = settings_of(config, options)
        report = api.compile(model, out=out, progress=progress(quiet), cache=cache, build=build, **settings, **opening)
    else:
        raise MoecError(
            "M201",
            "no MODEL was given",
            "moec compile",
            "moec compile MODEL -o FOLDER, or moec compile --from moec.json -o FOLDER",
        )
    _say(out, report, as_json)


@click.command("build")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--model", help="Where the model lies on this machine, if not where it was compiled; its files must be the same."
)
@click.option("--allow-pickle", is_flag=True, help="Read weights from pickles.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model.")
@common
def build_command(engine: Path, model: str | None, as_json: bool, quiet: bool, **opening: Any) -> None:
    """Finish ENGINE, which `moec compile --no-build` wrote, with the runtime and the GPU of this machine, and prove it
    there.

    An engine that was finished before is built again, for the runtime that is here. ENGINE stays as it was unless
    everything went well.
    """
    from moec import api

    report = api.build(engine, model=model, progress=progress(quiet), **opening)
    _say(engine, report, as_json)


def _say(folder: Path, report: Any, as_json: bool) -> None:
    if as_json:
        emit({"ok": True, "folder": str(folder), "report": report.to_dict()})
    else:
        click.echo(f"{folder}  {report.headline()}")
