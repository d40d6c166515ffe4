"""Imports of the files beside a user's own: found first, and compiled from what stands there. Where an engine's
manifest says which files they were, no other is run.

Compiled code that Python keeps (`__pycache__`) says only by a time of which source it is, so none is read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, all_suffixes
from pathlib import Path
from types import ModuleType
from typing import Any

from moec.errors import MoecError
from moec.files.regular import file_hash

CODE = (*all_suffixes(), ".so", ".pyd")  # how files end that `import` runs, for other versions of Python too
_EXPECTED: ContextVar[Mapping[str, str] | None] = ContextVar("expected", default=None)


class ChangedError(MoecError):
    """M106 for a file that would be imported and is not the one that an engine was made with."""


class FreshLoader(SourceFileLoader):
    """Compiles the source that is there, whatever compiled code lies beside it."""

    def path_stats(self, path: Any) -> Mapping[str, Any]:
        raise OSError("compiled code is not looked for")  # what the import system takes as: there is none


class SiblingFinder(MetaPathFinder):
    """Finds the modules of a folder, as the folder's place in `sys.path` says."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._expected = folder, _EXPECTED.get()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a sibling; None for any other module, which others find. Raises M106, see `held_to`."""
        if fullname in sys.builtin_module_names:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or not found.has_location or not lies_in(found.origin, fullname, self._folder):
            return None
        self._require_known(Path(str(found.origin)).resolve())
        if isinstance(found.loader, SourceFileLoader):
            found.loader = FreshLoader(fullname, found.loader.path)
        return found

    def _require_known(self, file: Path) -> None:
        name = file.relative_to(self._folder).as_posix()
        if self._expected is not None and self._expected.get(name) != file_hash(file):
            what = f"the source has changed since: {name}"
            raise ChangedError("M106", what, str(file), "compile it anew: moec compile MODEL")


def lies_in(place: str | None, name: str, folder: Path) -> bool:
    """Whether the file or folder of a module `name` is a module or a package of a folder, compiled or not, and not of
    an environment that happens to lie in it."""
    if place is None:
        return False
    path, top = Path(place).resolve(), name.split(".")[0]
    parts = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    return bool(parts) and parts[0].split(".")[0] == top


@contextmanager
def held_to(hashes: Mapping[str, str]) -> Iterator[None]:
    """Within, a user's file imports from beside it only files of these SHA-256, by their path relative to its folder:
    M106 is raised for any other before it is run, also for one that was not there and stands before another module."""
    token = _EXPECTED.set(hashes)
    try:
        yield
    finally:
        _EXPECTED.reset(token)
