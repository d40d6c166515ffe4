"""A tiny model gets its name whole or not at all, and never over something."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.compiler.tiny import tiny
from moec.errors import MoecError
from tests.planning import configs


def test_it_is_a_folder_of_transformers(tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.MIXTRAL | {"vocab_size": 96})
    assert tiny(path, tmp_path / "tiny") > 0
    assert {"config.json", "model.safetensors"} <= {file.name for file in (tmp_path / "tiny").iterdir()}


def test_what_is_there_stays(tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.MIXTRAL)
    with pytest.raises(MoecError, match="M210"):
        tiny(path, tmp_path)
    with pytest.raises(MoecError, match="M201"):
        tiny(f"{tmp_path / 'model.py'}:make", tmp_path / "tiny")
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
