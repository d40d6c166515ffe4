"""Errors as lines that a runner of GitHub Actions reads: unescaped again as it does, they say what the error says."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from moec.cli.annotations import annotation
from moec.errors import MoecError
from tests.command_line import Cli

ERROR = MoecError("M106", "50% of\nit, changed: \x1b[2J", "a, b", "again")


def read(line: str) -> tuple[dict[str, str], str]:
    """Properties and text of an annotation."""
    assert "\n" not in line and line.startswith("::error ")
    head, _, text = line.removeprefix("::error ").partition("::")
    return {k: unquote(v) for k, _, v in (pair.partition("=") for pair in head.split(","))}, unquote(text)


def test_it_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    said = "50% of\nit, changed: \\x1b[2J\nwhere: a, b\nfix: again"
    assert read(annotation(ERROR)) == ({"title": "moec M106"}, said)
    properties, _ = read(annotation(ERROR, Path("engines/a,b/moec.json")))
    assert properties == {"file": "engines/a,b/moec.json", "title": "moec M106"}
    assert read(annotation(ERROR, tmp_path / "moec.json"))[0]["file"] == "moec.json"


@pytest.mark.parametrize("runner", ["true", ""])
def test_every_error_is_annotated_where_a_runner_reads(runner: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", runner)
    cli("explain", "no-such-pass", status=2)
    assert ("::error title=moec M202::" in cli.err) is (runner == "true")
