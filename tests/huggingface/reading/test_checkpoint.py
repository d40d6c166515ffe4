"""Weight files that are missing, broken or pickles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.reading.checkpoint import read_checkpoint
from tests import zoo
from tests.huggingface.conftest import Saved


def refused(folder: Path) -> MoecError:
    with pytest.raises(MoecError) as error:
        read_checkpoint(folder)
    return error.value


def sharded(folder: Path) -> Path:
    zoo.build("llama").save_pretrained(folder, max_shard_size="20KB")  # type: ignore[operator]
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards_hold_what_one_file_holds(saved: Saved, tmp_path: Path) -> None:
    one, many = read_checkpoint(saved("llama")).weights, read_checkpoint(sharded(tmp_path)).weights
    assert sorted(one) == sorted(many)
    assert all(torch.equal(one[name].load(), many[name].load()) for name in one)


def test_no_weights_at_all(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert error.code == "M205" and "model.safetensors" in error.where


def test_a_truncated_file(copied: Saved) -> None:
    path = copied("llama") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    error = refused(path.parent)
    assert error.code == "M205" and error.where == str(path)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    assert refused(tmp_path).code == "M205"


def test_a_missing_shard(tmp_path: Path) -> None:
    shard = sorted(sharded(tmp_path).glob("model-*.safetensors"))[1]
    shard.unlink()
    error = refused(tmp_path)
    assert error.code == "M205" and error.where == str(shard)


def test_an_index_that_promises_too_much(tmp_path: Path) -> None:
    index = sharded(tmp_path) / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.9.mlp.up_proj.weight"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    error = refused(tmp_path)
    assert error.code == "M205" and "model.layers.9.mlp.up_proj.weight" in error.what


def test_a_broken_index(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model.safetensors.index.json").write_text("{}")
    assert refused(tmp_path).code == "M205"


def test_a_pickle_is_read_only_when_told_to(copied: Saved) -> None:
    folder = copied("llama")
    stored = load_file(folder / "model.safetensors")
    torch.save(stored, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    error = refused(folder)
    assert error.code == "M209" and "pickle" in error.what
    source = open_source(str(folder), allow_pickle=True, cache=False)
    inputs = source.sample({"batch": 2, "sequence": 5})
    found, wanted = source.capture().run(**inputs)["logits"], source.reference()(**inputs)["logits"]
    assert (found - wanted).abs().max() <= 1e-4 * wanted.std()


def test_a_pickle_that_runs_code_is_refused_even_then(tmp_path: Path) -> None:
    torch.save({"weight": Path("code")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MoecError) as error:
        read_checkpoint(tmp_path, allow_pickle=True)
    assert error.value.code == "M205"


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "..\\\\x", "C:x", "", "."])
def test_an_index_whose_names_leave_the_folder(name: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(folder).code == "M205" and "no file of its folder" in refused(folder).what


def test_weights_that_are_no_file_or_somewhere_else(tmp_path: Path, copied: Saved) -> None:
    model = copied("llama")
    weights = model / "model.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    error = refused(model)
    assert error.code == "M205" and "link out of" in error.what and str(tmp_path) in error.fix
    weights.unlink()
    os.mkfifo(weights)
    assert refused(model).code == "M205" and "pipe" in refused(model).what


def test_links_of_the_cache_are_followed(tmp_path: Path, copied: Saved) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    copied("llama").rename(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert read_checkpoint(snapshot).weights and open_source(str(snapshot)).inputs


def test_an_engine_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "moec.json").write_text("{}")
    with pytest.raises(MoecError, match="this is an engine of moec's, no model"):
        read_checkpoint(tmp_path)
