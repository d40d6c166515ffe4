"""What lies beside a path that does not exist, and may have been meant; and which models lie in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from moec.registry import did_you_mean

_MOST = 10_000  # names of one folder that are looked at


def nearby(path: str | Path, otherwise: str, fits: Callable[[Path], bool] = lambda place: True) -> str:
    """Advice for a path that does not exist: the nearest names in its parent folder, or in that of the first folder of
    the path which is not there.

    Args:
        path: as the user wrote it.
        otherwise: the advice where nothing is near.
        fits: which places may have been meant.
    """
    wanted = Path(path)
    lost = next((place for place in [*reversed(wanted.parents), wanted] if not os.path.lexists(place)), wanted)
    rest = wanted.relative_to(lost)
    ending = lost.suffix  # which many share, and which says nothing
    meant = dict[str, str]()  # name -> the path with it
    with suppress(OSError), os.scandir(lost.parent) as entries:
        for entry in islice(entries, _MOST):
            place = lost.parent / entry.name / rest
            if place.exists() and fits(place):
                meant[entry.name.removesuffix(ending)] = f"{place}/" if place.is_dir() else str(place)
    return did_you_mean(lost.name.removesuffix(ending), sorted(meant), otherwise, meant)


def is_model(place: Path) -> bool:
    """Whether a place looks like what `moec compile` opens: a folder with a config, a Python file, a program."""
    if place.is_dir():
        return any((place / name).is_file() for name in ("config.json", "adapter_config.json", "program.json"))
    return place.suffix in (".py", ".pt2", ".gguf")


def model_in(folder: Path) -> Path | None:
    """The first model by name that lies in a folder, and that a path alone names: no Python file, and no engine."""
    with suppress(OSError), os.scandir(folder) as entries:
        places = sorted(folder / entry.name for entry in islice(entries, _MOST))
        return next((p for p in places if is_model(p) and p.suffix != ".py" and not (p / "moec.json").exists()), None)
    return None
