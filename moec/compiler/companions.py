"""The model's own files beside an engine: where a text begins and ends, and which tokens it has, is read from them."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moec.errors import AGAIN, MoecError
from moec.frontend.source import Source
from moec.layouts import model_folder

_MADE_BY = "transformers_version"  # of who wrote a config, which says nothing of the model


def require_companions(folder: Path, source: Source) -> None:
    """Raise M106 where a file beside an engine says something else than the model's own. Hashes in a manifest say only
    that nothing was changed after them."""
    home = model_folder(folder)
    with TemporaryDirectory() as made:
        source.write_companions(Path(made))
        for file in sorted(f for f in Path(made).rglob("*") if f.is_file()):
            place = home / file.relative_to(made)
            if not place.is_file() or _content(place) != _content(file):
                what = f"{file.relative_to(made).as_posix()} beside the engine is not the model's"
                raise MoecError("M106", what, str(place), AGAIN)


def _content(file: Path) -> Any:
    """Of a config what it says; of any other file its bytes."""
    written = file.read_bytes()
    try:
        found = json.loads(written) if file.suffix == ".json" else written
    except ValueError:
        return written
    return {k: v for k, v in found.items() if k != _MADE_BY} if isinstance(found, dict) else found
