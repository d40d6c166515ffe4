"""Write a folder beside its place, then rename it: nobody sees half an engine under the name that was asked for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moec.errors import MoecError

MANIFEST = "moec.json"  # what makes a folder an engine's


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well and vanishes when it does not."""
    check_out(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise MoecError(
            "M210", f"cannot write there: {error.strerror}", str(out.parent), "choose another --out"
        ) from error
    try:
        yield folder
        folder.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    except OSError as error:
        raise MoecError(
            "M210",
            f"the engine cannot be written: {error.strerror or error}",
            str(out),
            "free space there, or choose another --out",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_out(out: Path) -> None:
    """Raise M210 unless `out` is free, empty, or an engine folder that may be replaced."""
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / MANIFEST).exists())):
        raise MoecError(
            "M210", "there is something that moec did not write", str(out), "choose another --out, or remove it"
        )
