"""`moec cp`: a preset as a file of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from moec.cli import completing
from moec.cli.config import preset_text, presets
from moec.cli.console import common, emit, say
from moec.errors import MoecError
from moec.files.fresh import write_new
from moec.registry import did_you_mean


@click.command("cp")
@click.argument("preset", shell_complete=completing.preset_names)
@click.argument("to", type=click.Path(path_type=Path), default=".")
@common
def cp_command(preset: str, to: Path, as_json: bool, quiet: bool) -> None:
    """Copy PRESET to the file TO, or into the folder TO, to be changed and given to --config.

    Nothing that exists is written over.
    """
    if preset not in presets():
        raise MoecError("M202", f"no preset is called {preset!r}", "moec cp", did_you_mean(preset, list(presets())))
    path = to / f"{preset}.toml" if to.is_dir() else to
    write_new(path, preset_text(preset), f"name another file: moec cp {preset} FILE.toml")
    emit({"preset": preset, "file": str(path)}) if as_json else say(f"{path}  give it to moec compile with --config")
