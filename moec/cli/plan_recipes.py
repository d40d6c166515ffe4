"""Formats of `moec plan` that are presets: how moec itself would pack the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moec.cli.config import presets, read_config
from moec.pipeline.pipeline import Pipeline
from moec.planning.formats import FORMATS

PREFIX = "preset:"  # for presets that are called like a format


def recipes(formats: Sequence[str]) -> dict[str, Pipeline]:
    """The passes of those formats that are presets: `balanced`, `small`, or `preset:int4` where a format has the
    name."""
    found: dict[str, Pipeline] = {}
    for name in formats:
        preset = name.removeprefix(PREFIX)
        if preset in presets() and (preset != name or name not in FORMATS):
            found[name] = read_config(Path(preset))["pipeline"]
    return found
