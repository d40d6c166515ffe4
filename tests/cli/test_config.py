"""A TOML file says every setting, and nothing else; what it says wrong is named in three lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moec.cli.config import presets, read_config
from moec.compiler.options import SETTINGS, Options
from moec.errors import MoecError
from tests.compiler.test_options import OTHER


def write(path: Path, text: str) -> Path:
    (path / "mine.toml").write_text(text, encoding="utf-8")
    return path / "mine.toml"


def test_a_file_can_say_every_setting(tmp_path: Path) -> None:
    lines = [f"{SETTINGS[name].key} = {json.dumps(value)}\n" for name, value in OTHER.items()]
    assert Options.of(read_config(write(tmp_path, "".join(lines)))) == Options.of(OTHER)


def test_passes_are_tables_or_text(tmp_path: Path) -> None:
    texts = (
        '[[pass]]\nname = "upcycle"\nexperts = 2\ntop_k = 1\n[[pass]]\nname = "fuse-moe"\n',
        'pass = "upcycle(experts=2, top_k=1), fuse-moe"\n',
        'pass = ["upcycle(experts=2, top_k=1)", "fuse-moe"]\n',
    )
    found = [str(read_config(write(tmp_path, text))["pipeline"]) for text in texts]
    assert found == ["upcycle(experts=2, top_k=1), fuse-moe"] * 3


@pytest.mark.parametrize("name", presets())
def test_presets_are_settings(name: str) -> None:
    given = read_config(Path(name))
    assert len(Options.of(given).pipeline.passes) == 1 and presets()[name]


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ('seed = "x"', "mine.toml: seed", "a whole number"),
        ("seed = -1", "mine.toml: seed", "a whole number"),
        ("seed = true", "mine.toml: seed", "a whole number"),
        ("tolerance = inf", "mine.toml: tolerance", "a finite number"),
        ("tolerance = nan", "mine.toml: tolerance", "a finite number"),
        ("tolerance = -1", "mine.toml: tolerance", "a finite number"),
        ('cache = "no"', "mine.toml: cache", "true or false"),
        ('inputs = "ids"', "mine.toml: inputs", "a list of texts"),
        ('verify = "ful"', "mine.toml: verify", "did you mean full?"),
        ("target = 3", "mine.toml: target", "a target"),
        ("text = 2020-01-01", "mine.toml: text", "a text"),
        ("pass = 3", "mine.toml: pass", "[[pass]]"),
        ("[[pass]]\nbits = 4", "mine.toml: [[pass]]", "name"),
        ('[pass]\nname = "quantize"', "mine.toml: pass", "two brackets"),
        ("[quantize]\nbits = 4", "mine.toml", '[[pass]] with name = "quantize"'),
        ('[[pass]]\nname = "quantize"\nbit = 4', "mine.toml: quantize(…)", "did you mean bits?"),
        ('[[pass]]\nname = "quantize"\nbits = "4"', "quantize(…)", "bits is int"),
        ("tolerence = 1", "mine.toml", "did you mean tolerance"),
        ("optimize-for = 1", "mine.toml", "did you mean optimize_for?"),
        ('pipeline = "fuse-moe"', "mine.toml", "did you mean pass?"),
        ('input = ["x"]', "mine.toml", "did you mean inputs?"),
        ("dump = 1", "mine.toml", ""),
        ("trust_remote_code = true", "mine.toml", ""),
        ("seed = ", "mine.toml", "moec ls presets"),
    ],
)
def test_what_is_wrong_is_named(text: str, where: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(MoecError) as caught:
        read_config(write(tmp_path, text))
    assert caught.value.code == "M201" and where in caught.value.where and hint in caught.value.fix
    assert len(str(caught.value).splitlines()) == 3


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    expected: dict[str, Any] = {"folder.toml": "M201", "bytes.toml": "M201", "gone.toml": "M202", "int9": "M202"}
    for name, code in expected.items():
        with pytest.raises(MoecError) as caught:
            read_config(tmp_path / name if name.endswith(".toml") else Path(name))
        assert caught.value.code == code
