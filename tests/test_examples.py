"""The examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_upcycle_llama(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "upcycle_llama.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    differences = [float(d) for d in re.findall(r"largest difference (\S+?e-\d+)", done.stdout)]
    assert len(differences) == 2 and max(differences) < 1e-5
    losses = [float(v) for v in re.findall(r"loss (\S+)", done.stdout)]
    assert losses[-1] < losses[0] and "is a mixtral" in done.stdout
