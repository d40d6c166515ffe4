"""Shards are what safetensors itself reads, and are written block by block."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from moec.progress import Progress
from moec.weights import lazy as weights
from moec.weights.lazy import Weight
from moec.weights.shards import write_shards
from moec.weights.weight import BLOCK_BYTES

TENSORS = {
    "a": torch.randn(5, 3),
    "b": torch.randn(7).bfloat16(),
    "half": torch.randn(3, 2, 2).half(),
    "none": torch.zeros(0, 4),
    "ids": torch.arange(6),
    "scalar": torch.tensor(2.5),
    "flag": torch.tensor([True, False, True]),
}
LAZY = {name: weights.from_tensor(value, name) for name, value in TENSORS.items()}


def equal(found: dict[str, Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(
        torch.equal(v, TENSORS[k]) and v.dtype == TENSORS[k].dtype for k, v in found.items()
    )


def test_one_file(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, LAZY, 10**6)
    assert equal(load_file(path))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert not equal(load_file(path))


@pytest.mark.parametrize("limit", [1, 70])
def test_shards_and_their_index(limit: int, tmp_path: Path) -> None:
    *files, index = write_shards(tmp_path, LAZY, limit)
    described = json.loads(index.read_text())
    assert len(files) > 1 and described["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    assert equal({k: v for file in files for k, v in load_file(file).items()})
    assert all(name in load_file(tmp_path / file) for name, file in described["weight_map"].items())


def test_progress_is_told_the_bytes_of_every_block(tmp_path: Path) -> None:
    told: list[tuple[int, int, str, str]] = []

    class Noted(Progress):
        def advance(self, done: int, total: int, unit: str = "", what: str = "") -> None:
            told.append((done, total, unit, what))

    write_shards(tmp_path, {"a": LAZY["a"], "half": LAZY["half"]}, 70, Noted())
    assert told == [(60, 84, "B", "a"), (84, 84, "B", "half")]


def test_large_weights_are_read_in_blocks(tmp_path: Path) -> None:
    asked: list[int] = []

    def read(start: int, stop: int) -> Tensor:
        asked.append(stop - start)
        return torch.full((stop - start, 2**20), float(start))

    write_shards(tmp_path, {"big": Weight((40, 2**20), torch.float32, "big", read)}, 10**9)
    assert max(asked) * 2**22 <= 2 * BLOCK_BYTES and sum(asked) == 40
    assert load_file(tmp_path / "model.safetensors")["big"].shape == (40, 2**20)
