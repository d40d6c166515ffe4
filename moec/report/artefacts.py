"""The files of an engine folder, with their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moec.errors import AGAIN, MoecError
from moec.files.inside import stays_inside
from moec.files.regular import file_hash
from moec.layouts.facts import CARD

MANIFEST = "moec.json"  # what makes a folder an engine's
SPEED_FILE = "bench.json"  # times, which no manifest holds
# they hold the hashes of the others and therefore cannot hold their own, or come later
_OWN = (MANIFEST, "report.html", SPEED_FILE)


@dataclass(frozen=True)
class Artefact:
    """One file of an engine folder: its name there, SHA-256 and size."""

    name: str
    sha256: str
    size_bytes: int


def hash_artefacts(folder: Path) -> tuple[Artefact, ...]:
    """Every file of an engine folder but the report's own, by name."""
    return tuple(hash_artefact(folder, name) for name in names_in(folder))


def names_in(folder: Path) -> list[str]:
    """The names of every file of an engine folder but the report's own; those of its parts have reports, too."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return [name for name in files if name not in _OWN]


def hash_artefact(folder: Path, name: str) -> Artefact:
    """One file of an engine folder, by its name there."""
    path = folder / name
    return Artefact(name, file_hash(path), path.stat().st_size)


def parts(artefacts: Iterable[Artefact]) -> list[Artefact]:
    """The files that the engine is made of: all but its model card, which people go on writing, and no engine
    reads."""
    return [artefact for artefact in artefacts if artefact.name != CARD]


def size_bytes(artefacts: Iterable[Artefact]) -> int:
    """Of an engine's files, without its model card."""
    return sum(artefact.size_bytes for artefact in parts(artefacts))


def check_artefacts(artefacts: Sequence[Artefact], folder: Path, check: str = "hash") -> None:
    """Raise M106 unless every file is as the report of its engine says, but for the model card, which is there to be
    gone on with; `check` is `hash`, or `size` to read no contents."""
    for artefact in parts(artefacts):
        path = folder / artefact.name
        if not stays_inside(artefact.name):
            problem = "names a place outside of the folder"
        elif not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != artefact.size_bytes:
            problem = f"has {path.stat().st_size} bytes instead of {artefact.size_bytes}"
        elif check == "hash" and file_hash(path) != artefact.sha256:
            problem = "was changed after it was written"
        else:
            continue
        raise MoecError("M106", f"{artefact.name} {problem}", str(path), AGAIN)
