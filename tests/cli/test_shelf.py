"""`moec ls` and `moec diff`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command_line import Cli


@pytest.mark.parametrize(
    ("what", "name"), [("passes", "upcycle"), ("targets", "onnxruntime"), ("presets", "upcycle-8x2")]
)
def test_ls(cli: Cli, what: str, name: str) -> None:
    rows = cli.json("ls", what)
    assert rows[name] and name in cli("ls", what)
    assert cli.json("ls")[what] == rows and rows[name] in cli("ls")


def test_ls_of_a_folder(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    shutil.copytree(mixtral_engine, tmp_path / "today" / "engine")
    text = cli("ls", tmp_path)
    assert "today/engine" in text and "onnxruntime" in text and "verified" in text and "MiB" in text
    (row,) = cli.json("ls", tmp_path)
    assert row["target"] == "onnxruntime" and 0 < row["deviation"] < 1e-3


def test_ls_of_nothing(cli: Cli, tmp_path: Path) -> None:
    assert "no engine lies in" in cli("ls", tmp_path)
    cli("ls", tmp_path / "nowhere", status=2)
    assert "no such folder" in cli.err


def test_diff(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    assert cli("diff", mixtral_engine, mixtral_engine) == "equal\n"
    other = Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))
    manifest = other / "moec.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 7'))
    assert cli("diff", mixtral_engine, other, status=1) == "setting seed: 0 → 7\n"
    assert cli.json("diff", mixtral_engine, other, status=1) == [{"name": "setting seed", "left": 0, "right": 7}]


def test_check(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    assert "as it was" in cli("check", mixtral_engine)
    config = tmp_path / "other.toml"
    config.write_text("seed = 3\n")
    assert "seed is 3 now" in cli("check", mixtral_engine, "--config", config, status=1)
    (found,) = cli.json("check", mixtral_engine, "--config", config, status=1).values()
    assert [error["code"] for error in found] == ["M112"]
