"""The operators know where CUDA tensors go; that they get there is in `tests/kernels/test_dispatch.py`."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

import moec.dialect.cuda as cuda


def test_the_kernels_are_found_by_name_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        cuda, "import_module", lambda name: asked.append(name) or SimpleNamespace(route=lambda *a, **k: (a, k))
    )
    found = cuda._found_late("route")
    assert asked == []
    assert found(1, top_k=2) == ((1,), {"top_k": 2}) and asked == [cuda._KERNELS]


def test_every_name_is_there() -> None:
    module = importlib.import_module(cuda._KERNELS)
    assert all(callable(getattr(module, name)) for name in ("route", "experts", "moe"))
