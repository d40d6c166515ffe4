"""Names are the user's own, and memory is what it is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moec.execution.memory import reset_peak
from moec.timing.contenders import Contender, contenders, loaded, row_names, warmed_up
from tests.timing.test_engines import Sleeper

MIB = 2**20


def test_rows_are_named_as_the_user_wrote_them() -> None:
    assert row_names(["out/a/", Path("out/b"), "out/a", "eager"]) == ["out/a", "out/b", "out/a (2)", "eager"]
    assert [c.name for c in contenders([Sleeper("x", 0, []), Contender("x", Sleeper("y", 0, []))])] == ["x", "x (2)"]


def test_loading_and_running_are_told_apart() -> None:
    if not reset_peak():
        pytest.skip("this system cannot let the peak start again")
    held = []

    def load() -> Sleeper:
        held.append(np.ones(64 * MIB, dtype=np.uint8))
        return Sleeper("a", 0, [])

    found = loaded("a", load)
    assert found.loaded_bytes is not None and 56 * MIB <= found.loaded_bytes <= 96 * MIB
    memory = warmed_up(found, lambda: np.ones(48 * MIB, dtype=np.uint8).sum(), 2)
    assert 40 * MIB <= memory.running_bytes <= 80 * MIB
    assert memory.own_bytes == memory.loaded_bytes + memory.running_bytes and memory.peak_bytes > memory.own_bytes


def test_the_own_memory_of_what_came_loaded_is_not_known() -> None:
    memory = warmed_up(contenders([Sleeper("a", 0, [])])[0], lambda: None, 1)
    assert memory.own_bytes is None and memory.peak_bytes > 0
