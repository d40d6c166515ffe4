"""Files go into a folder in order, and a sink that is no folder is given the same bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from moec.files.sink import FolderSink
from moec.weights.lazy import from_tensor
from moec.weights.shards import stream_shards, write_shards


class Kept(dict[str, bytes]):
    """A sink that keeps what it is given."""

    def create(self, name: str) -> Any:
        kept = self

        class File(io.BytesIO):
            def close(self) -> None:
                kept[name] = self.getvalue()
                super().close()

        return File()


def test_a_file_is_made_or_emptied(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path)
    for content in (b"long content", b"short"):
        with sink.create("a") as file:
            file.write(content)
        assert (tmp_path / "a").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        FolderSink(tmp_path / "missing").create("a")


def test_any_sink_is_given_what_a_folder_is(tmp_path: Path) -> None:
    weights = {name: from_tensor(torch.randn(5, 3), name) for name in ("a", "b")}
    sink = Kept()
    names = stream_shards(sink, weights, 60)
    assert [path.name for path in write_shards(tmp_path, weights, 60)] == names == list(sink)
    assert len(names) == 3 and all((tmp_path / name).read_bytes() == sink[name] for name in names)
    assert sink[names[0]] != sink[names[1]]
