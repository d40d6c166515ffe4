"""The examples run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moec.frontend.in_memory import IN_MEMORY

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.repeats
def test_upcycle_llama(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "upcycle_llama.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    differences = [float(d) for d in re.findall(r"largest difference (\S+?e-\d+)", done.stdout)]
    assert len(differences) == 2 and max(differences) < 1e-5
    losses = [float(v) for v in re.findall(r"loss (\S+)", done.stdout)]
    assert losses[-1] < losses[0] and "is a mixtral" in done.stdout


@pytest.mark.slow
def test_train_upcycled(tmp_path: Path) -> None:
    """The mixture begins as what the dense model is, both learn, both are plotted; what was trained is what is saved,
    compiled and run."""
    command = [sys.executable, str(EXAMPLES / "train_upcycled.py"), str(tmp_path), "--first", "5", "--steps", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    curves = json.loads((tmp_path / "curves.json").read_text())
    first, last = ({name: curve[at]["loss"] for name, curve in curves.items()} for at in (0, -1))
    assert first["mixture"] == pytest.approx(first["dense"], abs=1e-3)
    assert all(last[name] < first[name] - 0.05 for name in ("dense", "mixture"))
    assert curves["mixture"][-1]["router/effective_share"] > 0.5 and "router/dead" not in curves["dense"][-1]
    plotted = tmp_path / "curves.svg"
    assert (plotted.is_file() and "router/max_vio" in plotted.read_text()) or "pip install matplotlib" in done.stdout
    assert "is a mixtral" in done.stdout and "verified: " in done.stdout and "16/16 experts reached" in done.stdout
    assert json.loads((tmp_path / "engine" / "moec.json").read_text())["source_hashes"].keys() == {IN_MEMORY}


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    """The demo: similarities of a real model's engine equal eager's."""
    command = [sys.executable, str(EXAMPLES / "minilm.py"), str(tmp_path / "engine")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "48/48 experts reached" in done.stdout
    assert float(re.findall(r"largest difference (\S+);", done.stdout)[0]) < 1e-5
    pairs = [tuple(map(float, p)) for p in re.findall(r"(-?0\.\d+)  (-?0\.\d+)$", done.stdout, re.MULTILINE)]
    assert len(pairs) == 6 and max(ours for ours, _ in pairs) > 0.4 > 0.1 > min(ours for ours, _ in pairs)
