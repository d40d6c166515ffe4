"""`moec tiny`: a stand-in for a model, to try the whole way in seconds."""

from __future__ import annotations

from pathlib import Path

from moec.compiler.open import described_kind, without_config
from moec.compiler.staging import as_refusal, require_free
from moec.files.exchange import move
from moec.files.workplace import workplace


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
    kind = described_kind(model)
    with as_refusal(place.parent, place), workplace(place) as work:
        folder = work / place.name
        folder.mkdir()
        count = kind.save_tiny(str(model), folder, seed)
        if count is None:
            raise without_config(model)
        move(folder, place)
    return count
