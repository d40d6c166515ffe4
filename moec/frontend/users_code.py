"""A user's own Python file: imported and called where the user named it, and its failures told as such."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moec.errors import MoecError


def import_file(path: Path) -> Any:
    """The module that a user's Python file makes, under a name that takes no other module's place. Raises M204 where
    there is no such file, or where it fails."""
    name = f"moec_model_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"  # it takes no module's place
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise MoecError("M204", "no such Python file", str(path), "give path/to/file.py:callable")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look for it
    with _running(f"the file {path.name}", str(path), "run it with python to see the traceback"):
        spec.loader.exec_module(module)
    return module


def call(module: Any, name: str, text: str) -> Any:
    """What a callable of the file returns; `text` is how the user named both. Raises M204 where there is none, or where
    it fails."""
    function = getattr(module, name, None)
    if not callable(function):
        raise MoecError("M204", f"the file has no callable {name!r}", text, "name a function or class of the file")
    with _running(f"{name}()", text, "call it in python to see the traceback"):
        return function()


@contextmanager
def _running(what: str, where: str, fix: str) -> Iterator[None]:
    """Raise M204 for whatever the block raises, a SystemExit too; an interrupt is none of it."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise MoecError("M204", f"{what} failed: {type(error).__name__}: {error}", where, fix) from error
