"""`moec compile`, `moec build`: engines, from a model or from what was left unfinished."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moec import registry
from moec.cli import completing
from moec.cli.config import read_config
from moec.cli.console import common, emit, progress, say, say_verdict
from moec.cli.examples import example_of
from moec.cli.overrides import config_option, overridden, set_option
from moec.cli.script import script
from moec.cli.settings import given_settings, run_option, setting_options, text_options, trust_options
from moec.cli.terminal import TERMINAL
from moec.compiler.options import SETTINGS
from moec.errors import MoecError
from moec.files.fresh import write_new
from moec.targets.target import Target

if TYPE_CHECKING:
    from moec.pipeline.pipeline import Pipeline


@click.command("compile")
@click.argument("model", required=False, shell_complete=completing.files)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The engine folder to write.  [required]")
@config_option("A TOML file with any of the settings below, or the name of a preset. The command line overrides it.")
@click.option(
    "--from",
    "manifest",
    type=click.Path(path_type=Path),
    help="Rebuild the engine of this moec.json: its model, with its settings. The command line overrides these.",
)
@setting_options()
@set_option
@click.option(
    "--precision",
    shell_complete=completing.precision,
    help="Of the engine's floats, as --target says it: short for --target …,precision=fp16.",
)
@trust_options
@run_option
@click.option(
    "--dump",
    type=click.Path(path_type=Path),
    help="Write the program after every pass, and the graph after every step of its lowering, as text.",
)
@click.option(
    "--print-after",
    multiple=True,
    metavar="PASS",
    shell_complete=completing.passes_or_all,
    help="Print the program on stderr after this pass, or after all. Repeatable.",
)
@click.option(
    "--gen-script",
    type=click.Path(path_type=Path),
    help="Compile nothing: write a Python script that does what this command would.",
)
@common
@click.pass_context
def compile_command(
    context: click.Context,
    /,
    model: str | None,
    out: Path | None,
    manifest: Path | None,
    config: Path | None,
    overrides: tuple[str, ...],
    dump: Path | None,
    print_after: tuple[str, ...],
    gen_script: Path | None,
    precision: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    require_run: bool,
    as_json: bool,
    quiet: bool,
    **_: Any,
) -> None:
    """Compile MODEL into a verified engine folder.

    MODEL is a Hugging Face folder or hub id, path/to/file.py:callable[:sample_inputs], or a .pt2 file. The engine
    appears under --out only when it was proven equal to the untouched model; else the exit status is not 0 and nothing
    is there.

    Settings come from --config, or from --from; an option that is given on the command line takes their place, also
    where it says the default. --pass replaces all passes of the file, --set a single option of one of them.
    """
    out = _folder(out, model, manifest, config)
    given = given_settings(context)
    settings = {**(read_config(config) if config else {}), **given}
    settings = overridden(settings, overrides, given, lambda: _recorded(manifest))
    if precision is not None:
        target = Target.parse(str(settings.get("target", SETTINGS["target"].default)))
        settings["target"] = with_precision(target, precision)
    rest: dict[str, Any] = {
        "out": out,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
        "require_run": require_run,
    }
    if gen_script:
        text = script(manifest or str(model), settings, dump, _printed(print_after), rebuild=bool(manifest), **rest)
        _write_script(gen_script, text, as_json)
        return

    from moec import api
    from moec.layouts.serving import serving_of

    rest |= {"hooks": _hooks(dump, print_after), "progress": progress(quiet)}
    report = api.rebuild(manifest, **rest, **settings) if manifest else api.compile(str(model), **rest, **settings)
    _say(out, report, as_json, serving_of(settings.get("save_hf"), settings.get("save_gguf")))


def _recorded(manifest: Path | None) -> Pipeline | None:
    """The passes of `--from`; None without one."""
    from moec.compiler.engine_folder import options_of
    from moec.report.artefacts import MANIFEST
    from moec.report.report import Report

    if manifest is None:
        return None
    return options_of(Report.read(manifest / MANIFEST if manifest.is_dir() else manifest)).pipeline


def _write_script(path: Path, text: str, as_json: bool) -> None:
    write_new(path, text, "name another file after --gen-script")
    emit({"script": str(path)}) if as_json else say(f"{path}  run it with python")


def _hooks(dump: Path | None, print_after: tuple[str, ...]) -> list[Any]:
    """Those who watch the pipeline. Raises M202 for a pass that does not exist."""
    from moec.pipeline.hooks import DumpHook, PrintHook

    only = _printed(print_after)
    printing = [] if only is None else [PrintHook(only, TERMINAL.stream(err=True))]
    return [*([DumpHook(dump)] if dump else []), *printing]


def _printed(print_after: tuple[str, ...]) -> list[str] | None:
    """The passes after which the program is printed: empty for all, None for none. Raises M202 for one that does not
    exist."""
    only = [name for name in print_after if name != "all" and registry.find("passes", name)]
    return ([] if "all" in print_after else only) if print_after else None


def with_precision(target: Target, precision: str) -> Target:
    """The target with this precision. Raises M201 where it says another."""
    said = target.options.get("precision", precision)
    if said != precision:
        what = f"--precision {precision}, and the target says precision={said}"
        raise MoecError("M201", what, "moec compile", "say it once")
    return dataclasses.replace(target, options={**target.options, "precision": precision})


def _folder(out: Path | None, model: str | None, manifest: Path | None, config: Path | None) -> Path:
    """Where the engine goes. Raise M201 unless one thing says what to compile, and one file how."""
    ways = "moec compile MODEL -o FOLDER, or moec compile --from moec.json -o FOLDER"
    if model is None and manifest is None:
        fix = example_of("compile", "see `moec compile --help`")
        raise MoecError("M201", "no MODEL was given", "moec compile", fix)
    if model is not None and manifest is not None:
        raise MoecError("M201", "MODEL and --from both say what to compile", "moec compile", ways)
    if config is not None and manifest is not None:
        fix = "give what differs from the manifest as options"
        raise MoecError("M201", "--config and --from both say how to compile", "moec compile", fix)
    if out is None:
        what = ["--from", str(manifest)] if model is None else [model]
        fix = f"write {shlex.join(['moec', 'compile', *what, '-o', 'engine/'])}"
        raise MoecError("M201", "no folder for the engine was given", "moec compile", fix)
    return out


@click.command("build")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--model",
    shell_complete=completing.files,
    help="Where the model lies on this machine, if not where it was compiled; its files must be the same.",
)
@click.option("--tolerance", type=float, help="Allowed max|d|/std(reference).")
@text_options
@trust_options
@run_option
@common
def build_command(engine: Path, model: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Finish ENGINE, which `moec compile --no-build` wrote, with the runtime and the GPU of this machine, and prove it
    there.

    An engine that was finished before is built again, for the runtime that is here. ENGINE stays as it was unless
    everything went well. Bounds are those that are given here, or moec's own; the manifest's count where they ask for
    more.
    """
    from moec import api

    report = api.build(engine, model=model, progress=progress(quiet), **options)
    _say(engine, report, as_json)


def _say(folder: Path, report: Any, as_json: bool, servings: Sequence[Any] = ()) -> None:
    """The verdict, and how what was written beside the engine is served."""
    if as_json:
        said = {"verdict": report.verdict, "proven_on_target": report.proof.proven_on_target}
        more = {"serve": [dataclasses.asdict(s) for s in servings]} if servings else {}
        emit({"ok": True, **said, **more, "folder": str(folder), "report": report.to_dict()})
        return
    say_verdict(f"{folder}  {report.headline()}")
    for line in (line for serving in servings for line in serving.lines()):
        say(line)
