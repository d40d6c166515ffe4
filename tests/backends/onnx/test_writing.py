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


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    model = product()
    add_initializer(model.graph, from_tensor(torch.randn(40, 10), "large"), "large")
    with pytest.raises(MoecError) as caught:
        write_model(model, tmp_path / "missing" / "model.onnx")
    assert caught.value.code == "M210"
