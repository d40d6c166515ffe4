"""Figures of the real process, moved by real allocations."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import numpy as np
import pytest

from moec.execution import memory
from moec.execution.memory import (
    OwnPeak,
    available_bytes,
    limited,
    own_bytes,
    peak_rss_bytes,
    reset_peak,
    rss_bytes,
    total_bytes,
)

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


def test_pages_of_a_mapped_file_are_resident_and_not_the_processs_own(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell them apart")
    (tmp_path / "file").write_bytes(bytes(64 * MIB))
    own, resident = own_bytes(), rss_bytes()
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        assert rss_bytes() - resident > 48 * MIB > 16 * MIB > own_bytes() - own


def test_a_peak_of_ones_own_is_seen_and_ends_with_its_block() -> None:
    with OwnPeak() as peak:
        before = peak.bytes
        block = np.ones(64 * MIB, dtype=np.uint8)
        time.sleep(0.1)
        del block
    assert peak.bytes - before > 48 * MIB
    after, more = peak.bytes, np.ones(128 * MIB, dtype=np.uint8)
    time.sleep(0.05)
    assert peak.bytes == after and more[0] == 1


def test_a_limit_and_a_control_group_leave_less_than_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = total_bytes()
    with limited(machine // 2), limited(machine // 4):
        assert total_bytes() == machine // 4
    assert total_bytes() == machine
    (tmp_path / "slice" / "job").mkdir(parents=True)
    (tmp_path / "slice" / "memory.max").write_text("1000\n")
    (tmp_path / "slice" / "job" / "memory.max").write_text("max\n")
    (tmp_path / "own").write_text("0::/slice/job\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_GROUP", tmp_path / "own")
    assert total_bytes() == 1000, "that of a group around it"
    assert available_bytes() == 0 < own_bytes(), "of which this process holds all"
    (tmp_path / "slice" / "memory.max").write_text(str(own_bytes() + 64 * MIB))
    assert 0 < available_bytes() < 128 * MIB
    (tmp_path / "slice" / "memory.max").write_text("1000")
    (tmp_path / "memory" / "old").mkdir(parents=True)
    (tmp_path / "memory" / "old" / "memory.limit_in_bytes").write_text("900\n")
    (tmp_path / "own").write_text("4:memory:/old\n0::/slice/job\n")
    assert total_bytes() == 900, "version 1"
