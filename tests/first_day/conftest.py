"""The script's modules import each other by bare names."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.first_day.day import BENCHMARKS


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))
