"""What a text names: a folder, a GGUF file, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.frontend.account import LeaveOut
from moec.frontend.source import Opening
from moec.huggingface.opened import home_of, origin_of
from moec.huggingface.reading.folder import ModelFolder
from tests import zoo


def test_a_folder_is_opened_as_one(tmp_path: Path) -> None:
    folder = zoo.save("llama", tmp_path / "llama")
    assert type(origin_of(folder, Opening(), LeaveOut())) is ModelFolder and home_of(folder) == tmp_path / "llama"


def test_files_are_named_in_the_folder_of_a_gguf_file(tmp_path: Path) -> None:
    assert home_of(str(tmp_path / "m.gguf")) == tmp_path
    with pytest.raises(MoecError, match="no such file") as caught:
        origin_of(str(tmp_path / "m.gguf"), Opening(), LeaveOut())
    assert caught.value.code == "M204"
