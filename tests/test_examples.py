"""The examples run as they stand."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moec import load_program
from moec.frontend.in_memory import IN_MEMORY

EXAMPLES = Path(__file__).parents[1] / "examples"
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an example as a script in this process, which has the libraries imported, and returns what it prints."""

    def printed(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return printed


@pytest.mark.slow
def test_upcycle_llama(run: Run, tmp_path: Path) -> None:
    """Upcycled, trained and compiled in 60 lines: checkpoint and engine are the trained module."""
    said = run("upcycle_llama.py", tmp_path / "out")
    differences = [float(d) for d in re.findall(r"largest difference (\S+?e[+-]\d+)", said)]
    assert len(differences) == 4 and max(differences[:3]) < 1e-5 < 0.1 < differences[3]
    losses = [float(v) for v in re.findall(r"loss (\S+)", said)]
    assert losses[-1] < losses[0] and "is a mixtral" in said
    assert "verified: " in said and "16/16 experts reached" in said
    assert len((EXAMPLES / "upcycle_llama.py").read_text().splitlines()) <= 60


@pytest.mark.slow
def test_train_upcycled(run: Run, tmp_path: Path) -> None:
    """The mixture begins as what the dense model is, both learn, both are plotted; what was trained is what is saved,
    compiled and run."""
    said = run("train_upcycled.py", tmp_path, "--first", 5, "--steps", 10)
    curves = json.loads((tmp_path / "curves.json").read_text())
    first, last = ({name: curve[at]["loss"] for name, curve in curves.items()} for at in (0, -1))
    assert first["mixture"] == pytest.approx(first["dense"], abs=1e-3)
    assert all(last[name] < first[name] - 0.05 for name in ("dense", "mixture"))
    assert curves["mixture"][-1]["router/effective_share"] > 0.5 and "router/dead" not in curves["dense"][-1]
    plotted = tmp_path / "curves.svg"
    assert (plotted.is_file() and "router/max_vio" in plotted.read_text()) or "pip install matplotlib" in said
    assert load_program(tmp_path / "trained.pt2").outputs[0] == "logits"
    assert "verified: " in said and "16/16 experts reached" in said
    assert json.loads((tmp_path / "engine" / "moec.json").read_text())["source_hashes"].keys() == {IN_MEMORY}


@pytest.mark.slow
def test_heal_carved(run: Run, tmp_path: Path) -> None:
    """Healing brings the carved model nearer; what was healed is what is saved and compiled."""
    said = run("heal_carved.py", tmp_path, "--first", 150, "--steps", 20, "--active", 2, "--lr", 3e-4)
    before, after = (float(v) for v in re.findall(r": (\S+) nats", said))
    assert after < 0.9 * before
    assert "is a carved_llama" in said and "verified: " in said and "16/16 experts reached" in said
    assert (tmp_path / "checkpoint" / "modeling_carved.py").is_file()


@pytest.mark.slow
def test_train_dense_run_sparse(run: Run, tmp_path: Path) -> None:
    """Fewer experts cost more, and the checkpoint says how many there are."""
    said = run("train_dense_run_sparse.py", tmp_path, "--steps", 40, "--share", 0.25)
    rows = {int(k): float(loss) for k, loss in re.findall(r"^ +(\d)  +(\d\.\d+)", said, re.MULTILINE)}
    assert sorted(rows) == list(range(1, 9)) and rows[1] != rows[8]
    assert "is an olmoe with 2 experts a token" in said and "verified: " in said
    assert json.loads((tmp_path / "checkpoint" / "config.json").read_text())["num_experts_per_tok"] == 2


@pytest.mark.slow
def test_minilm(run: Run, tmp_path: Path) -> None:
    """The demo: similarities of a real model's engine equal eager's."""
    said = run("minilm.py", tmp_path / "engine")
    assert "48/48 experts reached" in said
    assert float(re.findall(r"largest difference (\S+);", said)[0]) < 1e-5
    pairs = [tuple(map(float, p)) for p in re.findall(r"(-?0\.\d+)  (-?0\.\d+)$", said, re.MULTILINE)]
    assert len(pairs) == 6 and max(ours for ours, _ in pairs) > 0.4 > 0.1 > min(ours for ours, _ in pairs)
