"""A measurement says where it was made."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from moec.execution.machine import processor_name
from moec.timing.circumstances import circumstances


def test_machine_versions_and_time_are_there() -> None:
    found = circumstances({"runtime": "1.2"})
    assert found.cores >= 1 and found.memory_bytes > 2**28 and found.processor == processor_name() != ""
    assert {"moec", "python", "torch", "runtime"} <= set(found.versions) and "cpu_capability" not in found.versions
    assert datetime.fromisoformat(found.at).tzinfo is not None
    assert found.processor in str(found) and f"{found.cores} core" in str(found) and "runtime 1.2" in str(found)
    assert ", 1 core, " in str(replace(found, cores=1)) and ", 2 cores, " in str(replace(found, cores=2))
