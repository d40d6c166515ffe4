"""Names and links stay in their folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.files.inside import leads_outside, read_inside, stays_inside


@pytest.mark.parametrize("name", ["model.onnx", "deep/er/weights.bin", "a..b", "..a", "a b"])
def test_names_inside(name: str) -> None:
    assert stays_inside(name)


@pytest.mark.parametrize(
    "name", ["", ".", "/etc/passwd", "../x", "a/../../x", "C:x", "C:\\x", "..\\x", "a\\b", "//host/x", "a\0"]
)
def test_names_outside(name: str) -> None:
    assert not stays_inside(name)


def test_links(tmp_path: Path) -> None:
    folder, other = tmp_path / "model", tmp_path / "model-2"
    for place in (folder / "deep", other):
        place.mkdir(parents=True)
    (folder / "file").write_text("own")
    (other / "file").write_text("another's")
    (folder / "deep" / "link").symlink_to(folder / "file")
    (folder / "out").symlink_to(other / "file")
    (folder / "way").symlink_to(other)
    assert not leads_outside(folder / "file", folder) and not leads_outside(folder / "deep" / "link", folder)
    assert leads_outside(folder / "out", folder) and leads_outside(folder / "way" / "file", folder)
    (tmp_path / "alias").symlink_to(folder)
    assert not leads_outside(tmp_path / "alias" / "file", tmp_path / "alias")


def test_the_cache_of_hugging_face(tmp_path: Path) -> None:
    """Its snapshots link to blobs of the same model; those of another model are outside."""
    snapshot, other = tmp_path / "models--a--b" / "snapshots" / "1f", tmp_path / "models--c--d" / "blobs"
    for place in (snapshot, tmp_path / "models--a--b" / "blobs", other):
        place.mkdir(parents=True)
    for blob in (tmp_path / "models--a--b" / "blobs" / "0a", other / "0b"):
        blob.write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/0a")
    (snapshot / "tokenizer.json").symlink_to(other / "0b")
    assert not leads_outside(snapshot / "config.json", snapshot)
    assert leads_outside(snapshot / "tokenizer.json", snapshot)
    assert read_inside(snapshot / "config.json", snapshot) == "{}"
    with pytest.raises(MoecError, match="link out of its folder"):
        read_inside(snapshot / "tokenizer.json", snapshot)
