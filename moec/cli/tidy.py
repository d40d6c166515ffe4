"""`moec cache` and `moec clean`: what moec keeps and what it left behind."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

import click

from moec.cli.console import common, emit, say
from moec.errors import MoecError
from moec.files import kept
from moec.files.nearby import nearby
from moec.files.workplace import leftovers, remove_leftover
from moec.shown import size_of


def _finite(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        what = f"{value} is no amount"
        raise MoecError("M201", what, parameter.opts[0], "give a number, or leave the option out to keep all")
    return value


@click.command("cache")
@click.argument("what", required=False, type=click.Choice(["dir", "prune", "clear"]))
@click.option(
    "--max-gb",
    type=click.FloatRange(min=0),
    callback=_finite,
    help="prune: keep so many gigabytes, of what was used last.",
)
@click.option(
    "--max-days",
    type=click.FloatRange(min=0),
    callback=_finite,
    help="prune: remove what was not used for so many days.",
)
@click.option("--dry-run", is_flag=True, help="prune, clear: only say what would go.")
@common
def cache_command(
    what: str | None, max_gb: float | None, max_days: float | None, dry_run: bool, as_json: bool, quiet: bool
) -> int:
    """Show the weight cache: what was captured and quantized before (dir: its folder alone), prune it, or clear it.

    It lies in $MOEC_CACHE_DIR, else in $XDG_CACHE_HOME/moec or ~/.cache/moec; MOEC_CACHE_DIR=off switches it off. It
    keeps to $MOEC_CACHE_GB gigabytes (10). `moec verify`, --bisect, `moec build`
    and compiles with --no-resume never use it. Exit status 1 when
    something cannot be removed.
    """
    _require_use(what, {"--max-gb": max_gb is not None, "--max-days": max_days is not None, "--dry-run": dry_run})
    place = kept.folder()
    if what is None or what == "dir":
        found = kept.entries()
        size = sum(entry.size_bytes for entry in found)
        if as_json:
            emit({"folder": place and str(place), "entries": len(found), "bytes": size, "limit": kept.limit_bytes()})
        elif what == "dir":
            say(str(place) if place else "off")
        else:
            bound = f"{size_of(size)} of {size_of(kept.limit_bytes())}"
            say(f"{place}  {len(found)} entries, {bound}" if place else "off")
        return 0
    most = 0 if what == "clear" else kept.limit_bytes() if max_gb is None else int(max_gb * 1e9)
    found = kept.prune(most, float("inf") if max_days is None else max_days * 86400, dry_run)
    return _said({entry.path: entry.size_bytes for entry in found}, dry_run, as_json)


def _require_use(what: str | None, given: dict[str, bool]) -> None:
    """Raise M201 for an option that would change nothing, or less than it seems to."""
    useful = {"prune": tuple(given), "clear": ("--dry-run",)}.get(what or "", ())
    idle = next((name for name, is_given in given.items() if is_given and name not in useful), None)
    if idle:
        said = f"moec cache {what}".rstrip() if what else "moec cache"
        raise MoecError("M201", f"{idle} means nothing to `{said}`", idle, f"moec cache prune {idle} …")


@click.command("clean")
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@common
def clean_command(folder: Path, dry_run: bool, as_json: bool, quiet: bool) -> int:
    """Remove the work folders (.NAME.moec-…) that killed runs left in FOLDER and up to four folders below it.

    An engine that such a run had moved aside goes back to its place. Folders of runs that are alive, of other users,
    and everything that moec did not make stay as they are. Exit status 1 when something cannot be removed.
    """
    if not folder.is_dir():
        raise MoecError(
            "M201",
            "no such folder",
            str(folder),
            nearby(folder, "give the folder that holds your engines", Path.is_dir),
        )
    sizes = {each: _size(each) for each in leftovers(folder)}
    for each in sizes if not dry_run else ():
        remove_leftover(each)
    return _said(sizes, dry_run, as_json)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; of those that go meanwhile, none."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += 0 if path.is_dir() else path.lstat().st_size
    return total


def _said(found: dict[Path, int], dry_run: bool, as_json: bool) -> int:
    """Say what went, or would go, of what was found, with bytes by path, and what is still there. Returns the exit
    status."""
    left = [] if dry_run else [path for path in found if os.path.lexists(path)]
    gone = {path: size for path, size in found.items() if path not in left}
    if as_json:
        lists = {"removed": [] if dry_run else gone, "found": found, "left": left}
        emit({**{name: list(map(str, paths)) for name, paths in lists.items()}, "bytes": sum(gone.values())})
    else:
        for path in gone:
            say(str(path))
        done = "would go" if dry_run else "removed"
        say(
            f"{len(gone)} {done}, {size_of(sum(gone.values()))}"
            if gone
            else f"nothing {done}"
            if left
            else "nothing to remove"
        )
    for path in left:
        say(f"cannot be removed: {path}", err=True)
    return 1 if left else 0
