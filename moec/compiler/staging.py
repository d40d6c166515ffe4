"""Publish an engine's folder: made beside its place, put there in one step, only where nothing of others is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import combinations
from pathlib import Path

import msgspec

from moec.errors import MoecError
from moec.files.exchange import exchange, move
from moec.files.home import home
from moec.files.inside import stays_inside
from moec.files.refused import refused
from moec.files.regular import file_hash, read_bytes
from moec.files.workplace import OLD, workplace
from moec.layouts.facts import CARD
from moec.report.artefacts import MANIFEST, SPEED_FILE
from moec.report.speed import is_speed_file

PAGE = "report.html"


@contextmanager
def staging(out: Path, keep: Sequence[Path] = ()) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and vanishes when it does not.

    Whoever reads `out` sees the old engine or the new one (on systems that cannot swap two folders, none for a moment).
    Of an engine that was there, what its manifest lists is removed.

    Args:
        out: the place. keep: files and folders that the work reads, which must not be in it.

    Raises:
        MoecError: M210 when the place cannot be written or taken, before the work or after it; M218 when the system
            refused another file during the work.
    """
    out = out.resolve()
    check_out(out, keep)
    with ExitStack() as stack:
        with as_refusal(out.parent, out):
            place = stack.enter_context(workplace(out))
        with as_refusal(place, out):
            new = place / "engine"
            new.mkdir()
            yield new
            new.chmod(0o755)
            check_out(out, keep)
            put_in_place(new, out)


@contextmanager
def as_refusal(place: Path, out: Path) -> Iterator[None]:
    """An OSError of the block as the error that says which file it is about: M210 for one in `place`, where what
    becomes `out` is written; see `moec.files.refused`."""
    try:
        yield
    except OSError as error:
        better = refused(error, place, out)
        if better is None:
            raise
        raise better from error


def check_out(out: Path, keep: Sequence[Path] = ()) -> None:
    """Raise M210 unless `out` is free, empty, or an engine's folder with nothing else in it; never the current
    directory, the home, what is in `keep`, or a folder above one of these."""
    place = out.resolve()
    held = next((p for p in (Path.cwd(), home(), *keep) if p is not None and p.resolve().is_relative_to(place)), None)
    if held is not None:
        what = f"it is or holds {held}, which would be lost"
        raise MoecError("M210", what, str(out), "choose another --out, beside it")
    if not out.exists():
        return
    stranger = _stranger(place)
    if stranger is not None:
        what = f"there is something that moec did not write: {stranger}"
        raise MoecError("M210", what, str(out), "choose another --out, or move it away")


def require_free(folder: Path) -> None:
    """Raise M210 when something has this name already."""
    if folder.exists() or folder.is_symlink():
        raise MoecError("M210", "there is something of that name already", str(folder), "remove it or name another")


def require_apart(places: Mapping[str, Path]) -> None:
    """Raise M210 when two things that are to be written have the same place, or one a place inside the other's.

    Args:
        places: of the engine and of what is written beside it, by option.
    """
    for (flag, place), (other, taken) in combinations([*places.items()][::-1], 2):
        one, two = place.resolve(), taken.resolve()
        if one.is_relative_to(two) or two.is_relative_to(one):
            thing = "the engine's place" if other == "--out" else f"the place of {other}"
            what = f"{thing} is {taken}, and neither can be inside the other"
            raise MoecError("M210", what, str(place), f"choose another {flag}, beside {other}")


def put_in_place(new: Path, out: Path) -> None:
    """Give a new engine its place, and remove the one that was there.

    Raises:
        OSError: when the system says no. MoecError: M210 when somebody put a file into the old one meanwhile. `out` is
            then as it was.
    """
    try:
        move(new, out)
        return
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    _to_disk(new)  # the old one goes: the new one has to be there after a loss of power too
    if exchange(new, out):
        _keep_strangers(new, out)  # the old one goes with its work folder
        return
    old = new.parent / OLD  # an interrupted process leaves it for the next to put back, see `moec.files.workplace`
    out.rename(old)
    try:
        move(new, out)
    except BaseException:
        old.rename(out)
        raise


def _keep_strangers(old: Path, out: Path) -> None:
    """Swap back when the old engine's folder holds something else by now."""
    stranger = _stranger(old)
    if stranger is not None:
        exchange(old, out)
        what = f"somebody put {stranger} into it during the work"
        raise MoecError("M210", what, str(out), "move that away, and run it again")


def _stranger(folder: Path) -> str | None:
    """The first thing in a folder that its manifest does not list; None in an empty one."""
    if not folder.is_dir():
        return folder.name
    listed = _listed(folder)
    known = {*listed, *(str(parent) for name in listed for parent in Path(name).parents)}
    found = (path for path in sorted(folder.rglob("*")) if path.relative_to(folder).as_posix() not in known)
    return next((path.relative_to(folder).as_posix() for path in found), None)


class _File(msgspec.Struct):
    name: str
    sha256: str = ""


class _Manifest(msgspec.Struct):
    artefacts: list[_File]


def _listed(folder: Path) -> set[str]:
    """The files that moec wrote into a folder, as its manifest says; none where there is no manifest."""
    try:
        manifest = msgspec.json.decode(read_bytes(folder / MANIFEST), type=_Manifest)
    except (OSError, msgspec.MsgspecError):
        return set()
    mine = (file for file in manifest.artefacts if not _is_edited_card(folder, file))
    times = [SPEED_FILE] if is_speed_file(folder) else []
    return {MANIFEST, PAGE, *times, *(file.name for file in mine if stays_inside(file.name))}


def _is_edited_card(folder: Path, file: _File) -> bool:
    """Whether a file is the model card and somebody went on writing it: then it is theirs."""
    with suppress(OSError):
        return file.name == CARD and file_hash(folder / CARD) != file.sha256
    return False


def _to_disk(folder: Path) -> None:
    """Have the system write every file of a folder, and the names in it."""
    for path in [*folder.rglob("*"), folder]:
        with suppress(OSError):  # some file systems have no such call for folders
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
