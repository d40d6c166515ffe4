"""`moec cache` and `moec clean`: what moec keeps and what it left behind."""

from __future__ import annotations

from pathlib import Path

import click

from moec.cli.console import common, emit, say
from moec.errors import MoecError
from moec.files import kept
from moec.files.workplace import leftovers, remove_leftover

DEPTH = 4  # folders below the one that was named, as in `moec ls`


@click.command("cache")
@click.argument("what", required=False, type=click.Choice(["dir", "prune", "clear"]))
@click.option("--max-gb", type=click.FloatRange(min=0), help="prune: keep so many gigabytes, of what was used last.")
@click.option("--max-days", type=click.FloatRange(min=0), help="prune: remove what was not used for so many days.")
@click.option("--dry-run", is_flag=True, help="prune, clear: only say what would go.")
@common
def cache_command(
    what: str | None, max_gb: float | None, max_days: float | None, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    """Show the cache of quantized weights (dir: its folder alone), prune it, or clear it.

    It lies in $MOEC_CACHE_DIR, else in $XDG_CACHE_HOME/moec or ~/.cache/moec; MOEC_CACHE_DIR=off switches it off. It
    keeps to $MOEC_CACHE_GB gigabytes (10). `moec verify`, --bisect and `moec build` never use it.
    """
    place = kept.folder()
    if what is None or what == "dir":
        found = kept.entries()
        size = sum(entry.size_bytes for entry in found)
        if as_json:
            emit({"folder": place and str(place), "entries": len(found), "bytes": size, "limit": kept.limit_bytes()})
        elif what == "dir":
            say(str(place) if place else "off")
        else:
            bound = f"{size / 1e9:,.3f} of {kept.limit_bytes() / 1e9:,.1f} GB"
            say(f"{place}  {len(found)} entries, {bound}" if place else "off")
        return
    most = 0 if what == "clear" else kept.limit_bytes() if max_gb is None else int(max_gb * 1e9)
    gone = kept.prune(most, float("inf") if max_days is None else max_days * 86400, dry_run)
    _said([entry.path for entry in gone], sum(entry.size_bytes for entry in gone), dry_run, as_json)


@click.command("clean")
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@common
def clean_command(folder: Path, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Remove the work folders (.NAME.moec-…) that killed runs left in FOLDER and up to four folders below it.

    An engine that such a run had moved aside goes back to its place. Folders of runs that are alive, of other users,
    and everything that moec did not make stay as they are.
    """
    if not folder.is_dir():
        raise MoecError("M201", "no such folder", str(folder), "give the folder that holds your engines")
    found = leftovers(folder, DEPTH)
    size = sum(path.lstat().st_size for each in found for path in each.rglob("*") if not path.is_dir())
    gone = found if dry_run else [each for each in found if remove_leftover(each)]
    _said(gone, size, dry_run, as_json)


def _said(gone: list[Path], size_bytes: int, dry_run: bool, as_json: bool) -> None:
    if as_json:
        emit({"removed": [] if dry_run else list(map(str, gone)), "found": list(map(str, gone)), "bytes": size_bytes})
        return
    for path in gone:
        say(str(path))
    done = "would go" if dry_run else "removed"
    say(f"{len(gone)} {done}, {size_bytes / 2**20:,.1f} MiB" if gone else "nothing to remove")
