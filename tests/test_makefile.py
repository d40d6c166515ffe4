"""`make numbers` runs where numpy takes another CPU's kernels, and numpy takes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CORES = re.findall(r"OPENBLAS_CORETYPE=(\w+)", (Path(__file__).parents[1] / "Makefile").read_text())
SEEN = """
import numpy, threadpoolctl
print(*(found["architecture"] for found in threadpoolctl.threadpool_info() if found["internal_api"] == "openblas"))
"""


def taken(core: str) -> str:
    """The kernels that numpy has in a process of its own."""
    variables = {**os.environ, "OPENBLAS_CORETYPE": core}
    return subprocess.run([sys.executable, "-c", SEEN], env=variables, capture_output=True, text=True).stdout.strip()


def test_numpy_has_the_kernels_that_are_asked_for() -> None:
    pytest.importorskip("threadpoolctl")
    found = {core: taken(core) for core in CORES}
    if "" in found.values():
        pytest.skip("numpy has no OpenBLAS here")
    if "Nehalem" in found["Haswell"]:
        pytest.skip("this CPU has no AVX2")
    assert found == {"Haswell": "Haswell", "Nehalem": "Nehalem"}
