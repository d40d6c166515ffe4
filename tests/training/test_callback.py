"""The monitor in a real `Trainer`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from moec.training import RouterMonitor
from tests import zoo

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")


def trained(folder: Path, model: Any) -> tuple[Any, Any]:
    """A Trainer after four steps with a log after each two, an evaluation after the last, and its callback."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, zoo.VOCAB, (8, 16))]
    callback = RouterMonitor(model).callback()
    arguments = TrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=2, logging_steps=2, save_strategy="no", report_to=[],
        use_cpu=True, disable_tqdm=True, eval_strategy="steps", eval_steps=4,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[callback])
    trainer.train()
    return trainer, callback


def test_a_trainer_logs_the_routers(tmp_path: Path) -> None:
    model: Any = zoo.build("mixtral")
    with torch.no_grad():
        model.model.layers[0].post_attention_layernorm.weight.zero_()
        model.model.layers[0].post_attention_layernorm.weight.requires_grad_(False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer, callback = trained(tmp_path, model)
    logs = [log for log in trainer.state.log_history if "router/max_vio" in log]
    assert [log["step"] for log in logs] == [2, 4] == [step for step, _ in callback.history]
    assert all({"loss", "router/entropy", "router/dead"} <= log.keys() for log in logs)
    assert {f.tokens for _, figures in callback.history for f in figures} == {2 * 2 * 16}  # evaluation does not count
    texts = [str(w.message) for w in said if "experts in effect" in str(w.message)]
    assert len(texts) == 1 and "layers.0" in texts[0]  # once, not in every log
    assert not callback.monitor.tallies and not callback.monitor._ends
