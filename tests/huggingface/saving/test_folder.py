"""A checkpoint's folder is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moec.errors import MoecError
from moec.huggingface.saving.folder import publish, write_checkpoint
from moec.weights.lazy import from_tensor
from tests import zoo


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    seen: list[bool] = []

    def write(partial: Path) -> None:
        (partial / "file").write_text("text")
        seen.append((tmp_path / "new" / "out").exists())

    publish(tmp_path / "new" / "out", write)
    assert seen == [False] and (tmp_path / "new" / "out" / "file").read_text() == "text"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize(("raised", "seen"), [(OSError(28, "No space"), MoecError), (KeyboardInterrupt(), None)])
def test_nothing_is_left_behind(raised: BaseException, seen: type[Exception] | None, tmp_path: Path) -> None:
    def write(partial: Path) -> None:
        (partial / "file").write_text("half")
        raise raised

    with pytest.raises(seen or type(raised)) as caught:
        publish(tmp_path / "out", write)
    assert list(tmp_path.iterdir()) == [] and getattr(caught.value, "code", "M210") == "M210"


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(MoecError) as caught:
        publish(tmp_path / "out", lambda partial: None)
    assert caught.value.code == "M210" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_config_weights_and_what_lies_beside_the_source(tmp_path: Path) -> None:
    beside, out = tmp_path / "source", tmp_path / "out"
    for folder in (beside, out):
        folder.mkdir()
    for name in ("tokenizer.json", "LICENSE.txt", "model-00001.safetensors", "README.md"):
        (beside / name).write_text(name)
    value = torch.arange(6.0).reshape(2, 3)
    write_checkpoint(out, zoo.dense_configs()["llama"], {"w": from_tensor(value, "w")}, 10**9, beside)
    assert torch.equal(load_file(out / "model.safetensors")["w"], value)
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert {p.name for p in out.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "LICENSE.txt"}
