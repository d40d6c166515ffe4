"""`moec tiny`: a stand-in for a model, to try the whole way in seconds."""

from __future__ import annotations

from pathlib import Path

from moec.compiler.open import source_kind
from moec.compiler.staging import as_refusal, require_free
from moec.errors import MoecError
from moec.files.exchange import move
from moec.files.workplace import workplace
from moec.frontend.source import Opening


def tiny(model: str | Path, out: str | Path, seed: int = 0) -> int:
    """Write a tiny model of the same architecture, with random weights, as a folder; returns its parameters.

    Args:
        model: a config.json, a folder that holds one, or a hub id in the local cache. No weight of it is read.
        out: a name that is free; it gets there whole or not at all.
        seed: of the weights.

    Raises:
        MoecError: M201 for a model without a config, M210 when something has that name, M206 when the architecture does
            not come out tiny.
    """
    place = Path(out).resolve()
    require_free(place)
    kind = source_kind(str(model), Opening())
    with as_refusal(place.parent, place), workplace(place) as work:
        folder = work / place.name
        folder.mkdir()
        count = kind.save_tiny(str(model), folder, seed) if kind is not None else None
        if count is None:
            raise MoecError("M201", "a model without a config.json has no tiny one", str(model), "give a config.json")
        move(folder, place)
    return count
