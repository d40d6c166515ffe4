"""A file as what it holds, beside what it ought to."""

from __future__ import annotations

from pathlib import Path

import torch

from moec.frontend.source import Source
from moec.targets.backend import Backend, Constant, find_backend
from moec.targets.engine_file import EngineFile
from moec.targets.target import Target
from moec.weights.lazy import from_tensor
from tests.moe_module import MoeModel, source_of


def file_of(source: Source, folder: Path) -> EngineFile:
    target = Target("onnxruntime")
    file = EngineFile(find_backend(target), target, folder)
    file.backend.build(source.capture(), target, folder)
    return file


def test_what_a_file_holds_is_due(tmp_path: Path) -> None:
    source = source_of(MoeModel())
    file = file_of(source, tmp_path)
    held, due = file.held(), file.due(source.capture())
    assert held is not None and due is not None and held.keys() == due.keys()
    table = held["embedding.weight"].weight
    assert table is not None and table.shape == (50, 16) and due["embedding.weight"].lazy
    assert torch.equal(table.load(), source.capture().weights["embedding.weight"].load())


def test_a_backend_may_have_nothing_to_say(tmp_path: Path) -> None:
    source = source_of(MoeModel())
    backend = find_backend(Target("onnxruntime"))
    assert Backend.constants(backend, tmp_path) is None
    assert Backend.lowered_constants(backend, source.capture(), Target("onnxruntime"), tmp_path) is None


def test_equal_forms_can_be_compared() -> None:
    a, b = (Constant(n, "FLOAT", (3,), from_tensor(torch.zeros(3), n)) for n in "ab")
    assert a.form == b.form != Constant("c", "FLOAT", (1, 3)).form
