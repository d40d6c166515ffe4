"""Formats of `moec plan` that are presets: how moec itself would pack the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moec.cli.config import presets, read_config
from moec.errors import MoecError
from moec.pipeline.pipeline import Pipeline
from moec.planning.formats import FORMATS
from moec.registry import did_you_mean

PREFIX = "preset:"  # for presets that are called like a format


def recipes(formats: Sequence[str]) -> dict[str, Pipeline]:
    """The passes of those formats that are presets: `balanced`, `small`, or `preset:int4` where a format has the
    name. Raises M202 for a name that is neither a preset nor a format, with the nearest of both."""
    known = [*FORMATS, *presets()]
    unknown = next((name for name in formats if name.removeprefix(PREFIX) not in known), None)
    if unknown is not None:
        raise MoecError("M202", f"no format is called {unknown!r}", "--format", did_you_mean(unknown, known))
    found: dict[str, Pipeline] = {}
    for name in formats:
        preset = name.removeprefix(PREFIX)
        if preset in presets() and (preset != name or name not in FORMATS):
            found[name] = read_config(Path(preset))["pipeline"]
    return found
