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


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    """The demo: similarities of a real model's engine equal eager's."""
    command = [sys.executable, str(EXAMPLES / "minilm.py"), str(tmp_path / "engine")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "48/48 experts reached" in done.stdout
    assert float(re.findall(r"largest difference (\S+);", done.stdout)[0]) < 1e-5
    pairs = [tuple(map(float, p)) for p in re.findall(r"(-?0\.\d+)  (-?0\.\d+)$", done.stdout, re.MULTILINE)]
    assert len(pairs) == 6 and max(ours for ours, _ in pairs) > 0.4 > 0.1 > min(ours for ours, _ in pairs)
