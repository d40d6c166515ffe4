"""The graphs on top are the parts' own; only the place of their weights is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from moec.backends.onnxruntime.parts import FILES, _tensors


def _graph(path: Path, prefix: str = "") -> tuple[bytes, list[str]]:
    model = onnx.load(str(path), load_external_data=False)
    places: list[str] = []
    for entry in _locations(model):
        places.append(entry.value)
        entry.value = entry.value.removeprefix(prefix)
    return model.SerializeToString(deterministic=True), places


def _locations(model: Any) -> list[Any]:
    return [e for tensor in _tensors(model.graph) for e in tensor.external_data if e.key == "location"]


def test_same_graphs(translator_engine: Path) -> None:
    for part, file in FILES.items():
        own, _ = _graph(translator_engine / part / "model.onnx")
        top, places = _graph(translator_engine / file, f"{part}/")
        assert top == own and set(places) == {f"{part}/model.onnx.data"}
