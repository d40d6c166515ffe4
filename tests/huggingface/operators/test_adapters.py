"""Modules outside the experts interface: adapted when proven, refused by name otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from moec import open_source
from moec.errors import MoecError
from moec.huggingface.operators.adapters import adapt
from moec.huggingface.reading.folder import ModelFolder
from tests.huggingface.conftest import Saved


def test_llama4_scores_multiply_the_experts_input(saved: Saved) -> None:
    program = open_source(str(saved("llama4"))).capture()
    assert all(node.kwargs["score_before"] for node in program.nodes(torch.ops.moec.experts))
    assert len(program.nodes(torch.ops.moec.route)) == 2


def test_the_same_parts_with_another_meaning_are_refused(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights = ModelFolder(str(saved("llama4"))).captured(torch.float32)
    kind = type(model.model.layers[0].feed_forward)
    original = kind.forward

    def doubled(self: Any, hidden_states: torch.Tensor) -> Any:
        out, logits = original(self, hidden_states)
        return 2 * out, logits

    monkeypatch.setattr(kind, "forward", doubled)
    with pytest.raises(MoecError) as error:
        adapt(model, weights)
    assert error.value.code == "M206" and kind.__name__ in error.value.what


def test_a_loop_over_experts_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "moec.huggingface.operators.adapters.is_dropping", lambda module: False
    )  # as if it were unknown
    config = transformers.SwitchTransformersConfig(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=40,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        num_experts=4,
        num_sparse_encoder_layers=1,
    )
    transformers.SwitchTransformersForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(MoecError) as error:
        open_source(str(tmp_path)).capture()
    assert (
        error.value.code == "M206"
        and "SwitchTransformersExperts" in error.value.what
        and "experts" in error.value.where
    )
