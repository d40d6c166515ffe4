"""One module imported right after another, whenever that one is: what is slow is not imported before somebody needs it.

Python asks the finders in `sys.meta_path` for every module that it does not have yet. Imports nothing slow.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def when_imported(name: str, then: str) -> None:
    """Import the module `then` as soon as the module `name` is imported: now, if it is there already."""
    if name in sys.modules:
        importlib.import_module(then)
    else:
        sys.meta_path.insert(0, _Watch(name, then))


class _Watch:
    """A finder that finds one module as the others do, and has another one imported behind it."""

    def __init__(self, name: str, then: str) -> None:
        self._name, self._then, self._asking = name, then, False

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The spec that the other finders have; None for every other module. It may only be asked whether the module
        is there, so nothing is imported before the spec is used."""
        if name != self._name or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            self._follow(spec.loader)
        return spec

    def _follow(self, loader: Any) -> None:
        """Let this loader, which loads one module, import the other one at the end."""
        load = loader.exec_module

        def load_both(module: ModuleType) -> None:
            load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                importlib.import_module(self._then)

        loader.exec_module = load_both
