"""The name is the registry: `fuse-moe` is the class `FuseMoe` of `moec.passes.fuse_moe`, `onnxruntime` is
`moec.backends.onnxruntime.Onnxruntime`.

A folder without `backend.py` is what several backends share. Sources are asked in an order, so the built-in ones are a
list. Third parties add their own with entry points of the groups `moec.passes`, `moec.backends`, `moec.sources` and
`moec.formats` (of checkpoints, see `moec.huggingface.checkpoint_format`).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from moec.errors import MoecError

Group = Literal["passes", "backends", "sources", "formats"]
_SINGULAR = {"passes": "pass", "backends": "target", "sources": "source", "formats": "checkpoint format"}
_PACKAGES = {"passes": "moec.passes", "backends": "moec.backends", "formats": "moec.huggingface.formats"}
# in the order in which they are asked: each takes what those before it left
_SOURCES = {
    "program": "moec.frontend.program_source:ProgramSource",
    "python-file": "moec.frontend.module_source:FileSource",
    "exported-program": "moec.frontend.module_source:ExportedSource",
    "huggingface": "moec.huggingface.vision_language:VisionLanguageSource",
    "module": "moec.frontend.module_source:ModuleSource",
}


def names(group: Group) -> list[str]:
    """All names of a group: sorted, but sources in the order in which they are asked, those of third parties first."""
    theirs = {e.name for e in _theirs(group, (*sys.path,))}
    if group == "sources":
        return [*sorted(theirs - _SOURCES.keys()), *_SOURCES]
    package = importlib.import_module(_PACKAGES[group])
    folders = [m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg]
    shared = {
        name for name in folders if not any((Path(path) / name / "backend.py").is_file() for path in package.__path__)
    }
    own = [m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if m.name not in shared]
    return sorted({*own, *theirs})


def find(group: Group, name: str) -> Any:
    """The class with this name. Raises M202 with the nearest names."""
    known = names(group)
    if name not in known:
        raise MoecError(
            "M202", f"no {_SINGULAR[group]} is called {name!r}", f"--{_SINGULAR[group]}", did_you_mean(name, known)
        )
    entry = _entry(group, name)
    if entry is not None:
        return entry.load()
    if group == "sources":
        module_name, _, class_name = _SOURCES[name].partition(":")
        return getattr(importlib.import_module(module_name), class_name)
    return getattr(module(group, name), _place(group, name)[1])


def module(group: Group, name: str) -> Any:
    """The module of a known name of a group; its class may be loaded later."""
    return importlib.import_module(_place(group, name)[0])


def doc(group: Group, name: str) -> str:
    """The docstring of the class with a known name. It is read from the source, since to import a pass takes as long as
    torch; the class is imported where its source does not tell."""
    return _doc_in_source(*_place(group, name)) or inspect.getdoc(find(group, name)) or ""


def _doc_in_source(module: str, name: str) -> str:
    """The docstring of a class that stands in a module, or that the module imports by name; empty for any other."""
    try:
        spec = importlib.util.find_spec(module)  # it imports the packages around it
        tree = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))
    except (ImportError, OSError, ValueError, SyntaxError):
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return ast.get_docstring(node) or ""
        if isinstance(node, ast.ImportFrom) and not node.level and name in [alias.name for alias in node.names]:
            return _doc_in_source(str(node.module), name)
    return ""


def _place(group: Group, name: str) -> tuple[str, str]:
    """The module of a known name, and the class's own name in it."""
    entry = _entry(group, name)
    if entry is not None:
        return entry.module, entry.attr
    return f"{_PACKAGES[group]}.{name.replace('-', '_')}", "".join(part.capitalize() for part in name.split("-"))


def _entry(group: Group, name: str) -> EntryPoint | None:
    """What another package adds under this name."""
    return next((entry for entry in _theirs(group, (*sys.path,)) if entry.name == name), None)


@cache
def _theirs(group: Group, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What other packages add. Python reads the files of all installed ones to say it, so it is asked once for a path
    (`sys.path`) on which they lie."""
    return tuple(entry_points(group=f"moec.{group}"))


def did_you_mean(name: str, known: Sequence[str], otherwise: str = "", written: Mapping[str, str] | None = None) -> str:
    """Advice for a name that does not exist: the nearest ones, `otherwise`, or all that there are. `written` says how a
    name is to be written where that is not the name alone."""
    near = [written[each] if written else each for each in nearest(name, known)]
    return f"did you mean {' or '.join(near)}?" if near else otherwise or f"there are {', '.join(known) or 'none'}"


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """At most two names that somebody who wrote this one may have meant, the likeliest first; what is written in other
    cases, or with other dashes, is near."""
    plain = {each: _plain(each) for each in known}
    near = get_close_matches(_plain(name), plain.values(), n=2, cutoff=0.5)
    return [each for text in dict.fromkeys(near) for each, other in plain.items() if other == text][:2]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
