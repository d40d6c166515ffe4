"""A model is written with its weights beside it, as progress says, or a clear error says why not."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from moec.backends.onnx.tensors import add_initializer
from moec.backends.onnx.writing import write_model
from moec.errors import MoecError
from moec.progress import Progress
from moec.weights.lazy import from_tensor
from tests.backends.onnx.graphs import product


class Bytes(Progress):
    """Keeps how far it was."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def advance(self, done: int, total: int, unit: str = "", what: str = "") -> None:
        self.seen.append((done, total))


def test_large_weights_go_into_the_file_beside(tmp_path: Path) -> None:
    model, progress = product(), Bytes()
    large = torch.randn(40, 10)
    add_initializer(model.graph, from_tensor(large, "large"), "large")
    write_model(model, tmp_path / "model.onnx", progress)
    tensors = {t.name: t for t in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer}
    assert tensors["w"].raw_data and not tensors["large"].raw_data
    assert (tmp_path / "model.onnx.data").read_bytes() == large.numpy().tobytes()
    assert progress.seen == [(400 * 4, 400 * 4)]


def test_each_weight_starts_where_vectors_may(tmp_path: Path) -> None:
    model, progress = product(), Bytes()
    parts = {
        "codes": torch.arange(1025, dtype=torch.int32).to(torch.uint8),
        "scales": torch.randn(300),
        "halves": torch.randn(515).half(),
    }
    for name, tensor in parts.items():
        add_initializer(model.graph, from_tensor(tensor, name), name)
    write_model(model, tmp_path / "model.onnx", progress)
    found = {t.name: t for t in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer}
    places = {name: {e.key: e.value for e in found[name].external_data} for name in parts}
    assert [int(place["offset"]) for place in places.values()] == [0, 1088, 2304]
    assert all(int(places[name]["length"]) == tensor.nbytes for name, tensor in parts.items())
    data = (tmp_path / "model.onnx.data").read_bytes()
    assert not any(data[1025:1088]) and not any(data[2288:2304])
    read = {t.name: onnx.numpy_helper.to_array(t).copy() for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert all(torch.equal(torch.from_numpy(read[name]), tensor) for name, tensor in parts.items())
    assert progress.seen == [(1025, 3334), (1088 + 1200, 3334), (3334, 3334)] and len(data) == 3334


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    model = product()
    add_initializer(model.graph, from_tensor(torch.randn(40, 10), "large"), "large")
    with pytest.raises(MoecError) as caught:
        write_model(model, tmp_path / "missing" / "model.onnx")
    assert caught.value.code == "M210"
