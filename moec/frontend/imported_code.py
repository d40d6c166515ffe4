"""The code that a model's Python files go through, as far as their `import` statements say it: what is installed by its
version, and any other file (on `PYTHONPATH`, of an editable package) by its content, with what that imports in turn.

Nothing is imported here. What a file imports by a name that it computes is not seen.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import PathFinder, all_suffixes
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from moec.files.regular import file_hash
from moec.frontend.plain_sizes import NotPlainError

_IN_KEY = frozenset({*sys.stdlib_module_names, "torch", "moec"})  # see `moec.weights.remembered.code_key`


def code_of(modules: Iterable[str]) -> list[str]:
    """A line for each module that is reached from some, by their dotted names: its hash, or the version of what it was
    installed with; none for what stands in an `import` and is no module, or nowhere.

    Raises:
        NotPlainError: where one of the given modules is from no file.
    """
    given = set(modules)
    lines, known, todo = set[str](), {""}, sorted(given)
    while todo:
        name = todo.pop()
        if name in known or name.partition(".")[0] in _IN_KEY:
            continue
        known.add(name)
        todo.append(name.rpartition(".")[0])  # a package is run before what is in it
        file = _place(name)[0]
        if file is None and name in given:
            raise NotPlainError(f"code of {name}, which is no file,")
        if file is not None:
            installed = _version(name, file)
            lines.add(installed or f"{name} {file_hash(file)}")
            todo += [] if installed or file.suffix != ".py" else _imports(file, name)
    return sorted(lines)


def _place(name: str) -> tuple[Path | None, list[Path]]:
    """The file that a module is from, or would be, and the folders of what is in it: no file for what is built in, for
    a folder, and for what is not there. Looked for as `import` does, but no parent is run for it."""
    loaded, (parent, _, own) = sys.modules.get(name), name.rpartition(".")
    if loaded is not None:
        return _file(getattr(loaded, "__file__", None)), [Path(path) for path in getattr(loaded, "__path__", ())]
    if not parent:
        spec = PathFinder.find_spec(name)
        return (
            (None, []) if spec is None else (_file(spec.origin), list(map(Path, spec.submodule_search_locations or ())))
        )
    folders = _place(parent)[1]
    for folder in folders:
        for path, within in ((folder / own / "__init__", [folder / own]), (folder / own, [])):
            file = next((f for end in all_suffixes() if (f := _file(f"{path}{end}"))), None)
            if file is not None:
                return file, within
    return None, [folder / own for folder in folders if (folder / own).is_dir()]


def _file(place: str | None) -> Path | None:
    return Path(place).resolve() if place and Path(place).is_file() else None


def _imports(file: Path, name: str) -> Iterator[str]:
    """What the `import` statements of a file name; for `from a import b` both a and a.b, which may be a module."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names if base))


def _version(name: str, file: Path) -> str:
    """The name and version of the installed package that a module is of; empty where it is of none. An editable package
    has a version too, but its files are not where it is installed."""
    top, depth = name.partition(".")[0], name.count(".") + (file.stem == "__init__")
    for found in _distributions(top, file.parents[min(depth, len(file.parents) - 1)]):
        if file.is_relative_to(Path(str(found.locate_file(""))).resolve()):
            return f"{top} {found.version}"
    return ""


@cache
def _distributions(top: str, folder: Path) -> tuple[Distribution, ...]:
    """The packages, put into a folder by an installer, that a top-level module may be of."""
    if next(folder.glob("*.dist-info"), None) is None:
        return ()
    try:
        found = [distribution(top)]
    except (PackageNotFoundError, ValueError):  # a package of another name, which takes 0.2 s to find, or none
        found = [distribution(name) for name in packages_distributions().get(top, ())]
    return tuple(each for each in found if each.read_text("WHEEL") is not None)
