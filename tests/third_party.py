"""A third party's package as pip would have installed it: a module, and entry points that name its classes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def install(folder: Path, patch: pytest.MonkeyPatch, code: str, module: str = "theirs", **groups: str) -> None:
    """Write a module and put it on the path for one test.

    Args:
        code: the module's source.
        module: its name.
        groups: group -> `name = theirs:Class`, e.g. `passes="prune = theirs:Prune"`.
    """
    (folder / f"{module}.py").write_text(code)
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    entries = [f"[moec.{group}]\n{entry}\n" for group, entry in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(entries))
    patch.syspath_prepend(folder)
    patch.delitem(sys.modules, module, raising=False)
