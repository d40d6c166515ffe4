"""Engines that the tests of attention share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.backends.onnxruntime.attention.engines import Made, make_engine


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The engine of a model, built once."""
    return cache(lambda name: make_engine(name, tmp_path_factory.mktemp(name)))
