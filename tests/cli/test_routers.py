"""`moec routers`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moec.cli.routers import named_texts, view
from moec.compiler.routers import routers
from moec.errors import MoecError
from tests import zoo
from tests.command_line import Cli


@pytest.fixture
def text(tmp_path: Path) -> Path:
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(3, 90, 200))
    return tmp_path / "ids.npy"


def test_tables_for_people_and_json_for_plan(cli: Cli, mixtral: Path, text: Path) -> None:
    found = cli.json("routers", mixtral, "--text", f"law={text}", "--window", 25)
    assert [layer["layer"] for layer in found["layers"]] == [f"model.layers.{k}.mlp.experts" for k in (0, 1)]
    assert all(len(layer["load"]) == 8 and abs(sum(layer["load"]) - 1) < 1e-9 for layer in found["layers"])
    assert found["texts"][0]["name"] == "law" and found["alarms"] == []
    program = zoo.captured("mixtral")
    said = "\n".join(view(routers(program, {"law": text, "code": text}, window=25, versus=program)))
    for word in ("MaxVio", "model.layers.1.mlp.experts", "2 of 8", "chosen together", "4 of 8", "choices kept", "law"):
        assert word in said
    assert "100.0%" in said and "by chance" in said and "no warnings" in said


def test_bad_input_has_three_lines(cli: Cli, mixtral: Path, tmp_path: Path) -> None:
    cli("routers", mixtral, "--text", tmp_path / "none.npy", status=2)
    assert "M211" in cli.err and "fix:" in cli.err
    cli("routers", mixtral, status=2)
    assert "--text" in cli.err


def test_names_of_texts(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.txt"
    odd.write_text("x")
    assert named_texts(("law=x/y.txt", "z/code.txt", str(odd))) == {
        "law": "x/y.txt",
        "code": "z/code.txt",
        "a=b": str(odd),
    }
    for wrong in (("a=x", "a=y"), ("=x",), ("a=",)):
        with pytest.raises(MoecError) as caught:
            named_texts(wrong)
        assert caught.value.code == "M201"
