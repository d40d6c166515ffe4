"""Scores a model and engines of it in lm-evaluation-harness, on the tasks in a folder; `test_lm_eval.py` starts it.

Prints one JSON object: for each `backend=folder` what it answered to every request, by task.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def scores(backend: str, folder: str, tasks: str) -> dict[str, list[Any]]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    given = {"pretrained": folder, **({"dtype": "float32", "device": "cpu"} if backend == "hf" else {})}
    found = lm_eval.simple_evaluate(
        model=backend,
        model_args=given,
        tasks=["endings", "prose", *(["written"] if backend != "onnxruntime" else [])],  # that one generates nothing
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found is not None
    return {task: [sample["resps"] for sample in samples] for task, samples in found["samples"].items()}


if __name__ == "__main__":
    where, *pairs = sys.argv[1:]
    said = {pair: scores(*pair.split("=", 1), where) for pair in pairs}  # type: ignore[call-arg]
    print(json.dumps(said))
