"""The files beside an engine are the model's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import moec
from moec.compiler.companions import require_companions
from moec.errors import MoecError
from moec.frontend.source import Source


@pytest.fixture
def source(translator: Path) -> Source:
    return moec.open_source(str(translator))


@pytest.fixture
def beside(translator: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "generation_config.json"):
        shutil.copy(translator / name, tmp_path)
    return tmp_path


def _edit(file: Path, **entries: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def _refused(beside: Path, source: Source) -> str:
    """The file for which a folder is refused; empty where it is not."""
    try:
        require_companions(beside, source)
    except MoecError as error:
        return Path(error.where).name
    return ""


def test_copies_are(source: Source, beside: Path) -> None:
    assert _refused(beside, source) == ""
    (beside / "tokenizer.json").write_text("{}")  # what the model has not, a user may add
    _edit(beside / "config.json", transformers_version="9.9")
    assert _refused(beside, source) == ""
    _edit(beside / "config.json", eos_token_id=5)
    assert _refused(beside, source) == "config.json"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_what_says_something_else_is_not(name: str, source: Source, beside: Path) -> None:
    _edit(beside / name, eos_token_id=5)
    with pytest.raises(MoecError, match=f"{name} beside the engine is not") as error:
        require_companions(beside, source)
    assert error.value.code == "M106" and error.value.where == str(beside / name)
    (beside / name).unlink()
    with pytest.raises(MoecError, match=name):
        require_companions(beside, source)
