"""RecurrentGemma's recurrence as a scan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.huggingface.operators import gated_recurrence
from moec.huggingface.operators.gated_recurrence import adapt_gated_recurrence
from moec.huggingface.source import HuggingFaceSource
from tests import whole_zoo


def model() -> nn.Module:
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

    with torch.device("meta"):
        return nn.ModuleList([RecurrentGemmaRglru(RecurrentGemmaConfig(hidden_size=32, num_attention_heads=4))])


def test_it_is_found_and_proven() -> None:
    assert adapt_gated_recurrence(model()) == 1 and adapt_gated_recurrence(nn.Linear(2, 2)) == 0


def test_a_scan_that_goes_on_where_a_text_begins_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gated_recurrence._scan

    def without(self: Any, hidden: Any, gate: Any, reset: Any, state: Any) -> Any:
        return right(self, hidden, gate, torch.zeros_like(reset), state)

    monkeypatch.setattr(gated_recurrence, "_scan", without)
    with pytest.raises(MoecError, match="does not compute what its parts suggest") as error:
        adapt_gated_recurrence(model())
    assert error.value.code == "M206"


def test_without_a_cache_it_is_right() -> None:
    alone = HuggingFaceSource.from_model(whole_zoo.build("recurrent_gemma"), cache=False)
    sample = alone.sample({"batch": 2, "sequence": 23}, 5)
    got, want = (engine(**sample)["logits"] for engine in (EagerEngine(alone.capture()), alone.reference()))
    assert float((got - want).abs().max() / want.std()) < 1e-4
