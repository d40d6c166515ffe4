"""`moec cp`."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.cli.config import preset_text, presets, read_config
from tests.command_line import Cli


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_copied_into_a_folder(cli: Cli, name: str, tmp_path: Path) -> None:
    assert f"{name}.toml" in cli("cp", name, tmp_path)
    copied = tmp_path / f"{name}.toml"
    assert copied.read_text() == preset_text(name) and read_config(copied) == read_config(Path(name))


def test_a_preset_is_copied_to_a_file(cli: Cli, tmp_path: Path) -> None:
    assert cli.json("cp", "int8", tmp_path / "mine.toml") == {"preset": "int8", "file": str(tmp_path / "mine.toml")}
    assert read_config(tmp_path / "mine.toml") == read_config(Path("int8"))


def test_nothing_is_written_over(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "int8.toml").write_text("seed = 3\n")
    cli("cp", "int8", tmp_path, status=2)
    assert "M210" in cli.err and (tmp_path / "int8.toml").read_text() == "seed = 3\n"


def test_a_name_that_there_is_not(cli: Cli, tmp_path: Path) -> None:
    cli("cp", "int88", tmp_path, status=2)
    assert "did you mean int8" in cli.err and list(tmp_path.iterdir()) == []
