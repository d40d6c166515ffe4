"""A machine is told from another one."""

from __future__ import annotations

import dataclasses

from moec.execution.machine import cores, machine, processor_name


def test_it_is_the_same_whenever_it_is_asked() -> None:
    here = machine()
    assert here == machine() and here.processor == processor_name() != "" and here.cores == cores() >= 1
    assert here.processor in str(here) and f"{here.cores} cores" in str(here) and f"{here.gib} GiB" in str(here)
    assert dataclasses.replace(here, cores=here.cores + 1) != here
