"""Figures of the real process, moved by real allocations."""

from __future__ import annotations

import numpy as np
import pytest

from moec.execution.memory import peak_rss_bytes, reset_peak, rss_bytes

MIB = 2**20


def test_what_is_touched_is_resident() -> None:
    before = rss_bytes()
    block = np.ones(64 * MIB, dtype=np.uint8)
    assert rss_bytes() - before > 48 * MIB
    assert block[-1] == 1


def test_the_peak_outlives_the_allocation_and_starts_again() -> None:
    if not reset_peak():
        pytest.skip("this system cannot reset the peak")
    before = rss_bytes()
    np.ones(64 * MIB, dtype=np.uint8).sum()
    assert peak_rss_bytes() - before > 48 * MIB
    reset_peak()
    assert peak_rss_bytes() - before < 48 * MIB
