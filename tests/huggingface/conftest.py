"""Zoo models on disk, each written once a session."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import zoo

Saved = Callable[[str], Path]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """`saved(name)`: the folder of a zoo model. Shared: do not write to it."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = Path(zoo.save(name, tmp_path_factory.mktemp(name)))
        return folders[name]

    return get


@pytest.fixture
def copied(saved: Saved, tmp_path: Path) -> Saved:
    """`copied(name)`: a copy of a zoo model's folder that the test may spoil."""
    return lambda name: Path(shutil.copytree(saved(name), tmp_path / name))
