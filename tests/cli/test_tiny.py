"""`moec tiny`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import Cli
from tests.planning import configs


def test_a_model_and_its_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli, path = Cli(capsys), configs.write(tmp_path, configs.LLAMA_1B | {"vocab_size": 96})
    found = cli.json("tiny", path, tmp_path / "tiny")
    assert found["parameters"] > 0 and (tmp_path / "tiny" / "config.json").exists()
    cli("tiny", path, tmp_path / "tiny", status=2)
    assert "M210" in cli.err
