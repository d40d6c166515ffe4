"""The name is the registry: `fuse-moe` is the class `FuseMoe` of `moec.passes.fuse_moe`, `onnxruntime` is
`moec.backends.onnxruntime.Onnxruntime`.

A folder without `backend.py` is what several backends share.
Third parties add their own with entry points of the groups `moec.passes` and `moec.backends`.
"""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from moec.errors import MoecError

Group = Literal["passes", "backends"]
_SINGULAR = {"passes": "pass", "backends": "target"}


def names(group: Group) -> list[str]:
    """All names of a group, sorted."""
    package = importlib.import_module(f"moec.{group}")
    folders = [m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg]
    shared = {
        name for name in folders if not any((Path(path) / name / "backend.py").is_file() for path in package.__path__)
    }
    own = [m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if m.name not in shared]
    return sorted({*own, *(e.name for e in entry_points(group=f"moec.{group}"))})


def find(group: Group, name: str) -> Any:
    """The class with this name. Raises M202 with the nearest names."""
    known = names(group)
    if name not in known:
        raise MoecError(
            "M202", f"no {_SINGULAR[group]} is called {name!r}", f"--{_SINGULAR[group]}", did_you_mean(name, known)
        )
    for entry in entry_points(group=f"moec.{group}"):
        if entry.name == name:
            return entry.load()
    module = importlib.import_module(f"moec.{group}.{name.replace('-', '_')}")
    return getattr(module, "".join(part.capitalize() for part in name.split("-")))


def did_you_mean(name: str, known: list[str]) -> str:
    """Advice for a name that does not exist."""
    near = get_close_matches(name, known, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}"
