"""A user's own Python file: imported and called where the user named it, and its failures told as such.

While it and its callables run, `import` finds the files beside it first, as when python runs the file. Afterwards
everything is as it was: another file may have siblings of the same names. The module's `forward` runs later, so what it
imports from beside the file must have been imported before, e.g. at the head of the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moec.errors import MoecError
from moec.files.nearby import is_model, nearby
from moec.frontend.beside import ChangedError, FreshLoader, SiblingFinder, lies_in
from moec.registry import did_you_mean

_SIBLINGS: dict[str, Any] = {}  # modules that users' files imported from beside them, by name


def import_file(path: Path) -> Any:
    """The module that a user's Python file makes, under a name that takes no other module's place. Raises M204 where
    there is no such file, or where it fails, M106 for an import that `moec.frontend.beside.held_to` refuses."""
    _forget_siblings()
    name = f"moec_model_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"  # it takes no module's place
    loader = FreshLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader) if path.is_file() else None
    if spec is None or spec.loader is None:
        fix = nearby(path, "give path/to/file.py:callable", is_model)
        raise MoecError("M204", "no such Python file", str(path), fix)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look for it
    running = _running(f"the file {path.name}", str(path), "run it with python to see the traceback")
    with running, _beside(path.resolve().parent):
        spec.loader.exec_module(module)
    return module


def call(module: Any, name: str, text: str) -> Any:
    """What a callable of the file returns; `text` is how the user named both. Raises M204 where there is none, or where
    it fails, M106 for an import that `moec.frontend.beside.held_to` refuses."""
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        fix = did_you_mean(name, own, "name a function or class of the file")
        raise MoecError("M204", f"the file has no callable {name!r}", text, fix)
    folder = Path(module.__file__).resolve().parent
    with _running(f"{name}()", text, "call it in python to see the traceback"), _beside(folder):
        return function()


def siblings_of(path: Path) -> dict[str, Path]:
    """The files that the file which ran last imported from beside it, by their path relative to its folder."""
    folder = path.resolve().parent
    files = [Path(module.__file__).resolve() for module in _SIBLINGS.values() if getattr(module, "__file__", None)]
    return {f.relative_to(folder).as_posix(): f for f in sorted(files) if f.is_relative_to(folder)}


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """`import` looks into a folder first; no compiled code is kept there or elsewhere."""
    known, place, writes = set(sys.modules), str(folder), sys.dont_write_bytecode
    importlib.invalidate_caches()  # a file may be younger than what Python knows of its folder
    finder = SiblingFinder(folder)
    sys.path.insert(0, place)
    sys.meta_path.insert(0, finder)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        if place in sys.path:  # the file may have changed it
            sys.path.remove(place)
        tops = {name.split(".")[0] for name in known} - {name.split(".")[0] for name in _SIBLINGS}
        new = {n: m for n, m in sys.modules.items() if n not in known and n.split(".")[0] not in tops}
        _SIBLINGS.update({name: module for name, module in new.items() if lies_in(_place(module), name, folder)})


def _place(module: Any) -> str | None:
    """The file of a module, or the folder of a package that has none; None for one that is built in."""
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)


def _forget_siblings() -> None:
    """Let the next file import its own, and the same file those that were written anew."""
    for name, module in _SIBLINGS.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _SIBLINGS.clear()


@contextmanager
def _running(what: str, where: str, fix: str) -> Iterator[None]:
    """Raise M204 for whatever the block raises, a SystemExit too; an interrupt and a refused import are none of it."""
    try:
        yield
    except (KeyboardInterrupt, ChangedError):
        raise
    except BaseException as error:
        raise MoecError("M204", f"{what} failed: {type(error).__name__}: {error}", where, fix) from error
