"""lm-evaluation-harness scores engine folders as they are, by two of its backends, as it scores the untouched model."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.byte_tokenizer import write_tokenizer
from tests.execution.test_generation import talkative

pytestmark = [pytest.mark.serving, pytest.mark.slow]
CHOICES = [("the cat", [" sat", " ran away", "?"]), ("1 2 3", [" 4", " 5 6"]), ("a", ["b", "bc", "bcd"])]
PROSE = ["A router sends each token to two experts.", "The cat sleeps on the warm windowsill." * 3]
ENDINGS = """\
task: endings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/endings.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
ROLLING = """\
task: prose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/prose.jsonl}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""

WRITTEN = """\
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/endings.jsonl}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "x"
generation_kwargs: {{max_gen_toks: 12, do_sample: false, until: ["\\n"]}}
metric_list: [{{metric: exact_match}}]
"""


def tasks(folder: Path) -> Path:
    """Tasks whose texts lie in the folder."""
    rows = {"endings": [{"prompt": p, "choices": c} for p, c in CHOICES], "prose": [{"text": text} for text in PROSE]}
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, text in (("endings", ENDINGS), ("prose", ROLLING), ("written", WRITTEN)):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    return folder


def numbers(values: Any) -> list[float]:
    """Every number in nested lists; whether a continuation is the greedy one counts as one."""
    if isinstance(values, list):
        return [number for value in values for number in numbers(value)]
    return [float(values)] if isinstance(values, bool | int | float) else []


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Scores of a model, of its engine in each backend, and of an engine of another model."""
    import moec

    if not importlib.util.find_spec("lm_eval"):
        pytest.skip("lm-eval is not here")
    folder = tmp_path_factory.mktemp("scored")
    talkative("mixtral").save_pretrained(folder / "model")  # type: ignore[operator]  # a PreTrainedModel
    write_tokenizer(folder / "model")
    moec.compile(folder / "model", out=folder / "engine")
    shutil.copytree(folder / "engine", folder / "wrong")
    plain = shutil.ignore_patterns("genai_config.json")
    shutil.copytree(folder / "engine", folder / "plain", ignore=plain)
    data = np.fromfile(folder / "engine" / "model.onnx.data", dtype=np.float32)
    (data * 1.1).tofile(folder / "wrong" / "model.onnx.data")
    pairs = ["hf=model", "onnxruntime=engine", "onnxruntime=plain", "onnxruntime=wrong"]
    pairs += ["onnxruntime-genai=engine"] if importlib.util.find_spec("onnxruntime_genai") else []
    client, here = Path(__file__).with_name("lm_eval_client.py"), tasks(folder)
    given = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    named = [f"{backend}={folder / place}" for backend, place in (pair.split("=") for pair in pairs)]
    done = subprocess.run([sys.executable, client, here, *named], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {pair: found[name] for pair, name in zip(pairs, named, strict=True)}


@pytest.mark.parametrize("task", ["endings", "prose"])
@pytest.mark.parametrize("pair", ["onnxruntime=engine", "onnxruntime=plain", "onnxruntime-genai=engine"])
def test_an_engine_is_scored_as_the_model(pair: str, task: str, scored: dict[str, Any]) -> None:
    if pair not in scored:
        pytest.skip("onnxruntime-genai is not here")
    want, got = numbers(scored["hf=model"][task]), numbers(scored[pair][task])
    assert len(want) >= 2 and np.allclose(got, want, rtol=1e-4, atol=1e-3)


def test_it_writes_what_the_model_writes(scored: dict[str, Any]) -> None:
    if "onnxruntime-genai=engine" not in scored:
        pytest.skip("onnxruntime-genai is not here")
    want = scored["hf=model"]["written"]
    assert len(want) == len(CHOICES) and all(str(text[0][0]) for text in want)
    assert scored["onnxruntime-genai=engine"]["written"] == want


def test_a_wrong_engine_is_not(scored: dict[str, Any]) -> None:
    want, got = (numbers(scored[pair]["endings"]) for pair in ("hf=model", "onnxruntime=wrong"))
    assert not np.allclose(got, want, rtol=1e-4, atol=1e-3)
