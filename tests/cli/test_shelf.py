"""`moec ls` and `moec diff`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moec.cli.shelf import _table
from tests.command_line import Cli


@pytest.mark.parametrize(
    ("what", "name"), [("passes", "upcycle"), ("targets", "onnxruntime"), ("presets", "upcycle-8x2")]
)
def test_ls(cli: Cli, what: str, name: str) -> None:
    rows = cli.json("ls", what)[what]
    assert rows[name] and name in cli("ls", what)
    assert cli.json("ls")[what] == rows and rows[name] in cli("ls")


def test_ls_has_a_line_for_each_and_says_where_the_rest_is(cli: Cli) -> None:
    every, lines = cli.json("ls"), cli("ls").splitlines()
    for name, what in (row for rows in every.values() for row in rows.items()):
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert line == f"{name:<16} {what}" and len(line) <= 100
    assert "moec explain NAME" in lines[-1] and len(lines) == sum(map(len, every.values())) + 7


def test_a_long_sentence_of_another_package_is_cut() -> None:
    short, long = _table({"short": "Says it.", "long": "word " * 40}).splitlines()
    assert short.endswith(" Says it.") and long.endswith("word …") and len(long) <= 100


def test_ls_of_a_folder(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    shutil.copytree(mixtral_engine, tmp_path / "today" / "engine")
    text = cli("ls", tmp_path)
    assert "today/engine" in text and "onnxruntime" in text and "verified" in text and " KiB " in text
    (row,) = cli.json("ls", tmp_path)["engines"]
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
    found = cli.json("diff", mixtral_engine, other, status=1)["differences"]
    assert found == [{"name": "setting seed", "left": 0, "right": 7}]


def test_engines_whose_files_are_not_what_they_say_are_not_equal(
    cli: Cli, mixtral_engine: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(mixtral_engine, tmp_path / "engine"))
    weights = other / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    cli("diff", mixtral_engine, other, status=1)
    assert "M106" in cli.err and "was changed" in cli.err
    weights.unlink()
    cli("diff", other, mixtral_engine, status=1)
    assert "is missing" in cli.err


def test_ls_beside_a_manifest_that_links_to_itself(cli: Cli, mixtral_engine: Path, tmp_path: Path) -> None:
    shutil.copytree(mixtral_engine, tmp_path / "whole")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "moec.json").symlink_to("moec.json")
    rows = {Path(row["folder"]).name: row["target"] for row in cli.json("ls", tmp_path)["engines"]}
    assert rows == {"whole": "onnxruntime", "loop": ""}


def test_a_model_is_no_engine(cli: Cli, mixtral: Path, mixtral_engine: Path) -> None:
    cli("diff", mixtral_engine, mixtral, status=2)
    assert "this is no engine" in cli.err and str(mixtral) in cli.err
