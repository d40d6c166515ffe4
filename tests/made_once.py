"""What several tests share, made once for all workers of pytest."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The path of this name, which `make` writes: a file or a folder that no test changes. The first worker makes it,
    another waits. It is made beside its place, so that what fails, or is killed, leaves nothing there, and the next one
    tries."""
    path = shared(factory) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            place = Path(tempfile.mkdtemp(prefix=".making-", dir=path.parent)) / path.name
            try:
                make(place)
                place.rename(path)
            finally:
                shutil.rmtree(place.parent, ignore_errors=True)
    return path


def shared(factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, one for all workers."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
