"""Dynamic rotary tables: the capture is what a model made anew computes, below and above the trained length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from moec.execution.engine import EagerEngine
from moec.huggingface.operators.rope import grow_without_memory
from moec.huggingface.source import HuggingFaceSource
from tests.zoo import build

LONGEST = 16
ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def model(**changes: Any) -> Any:
    return build("llama", max_position_embeddings=LONGEST, rope_parameters=ROPE, **changes).eval()


def sample(batch: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("cache", [True, False])
def test_equal_to_a_model_made_anew(cache: bool) -> None:
    source = HuggingFaceSource.from_model(model(), cache=cache)
    engine, reference = EagerEngine(source.capture()), source.reference()
    for batch, length in ((2, 40), (1, 1), (2, LONGEST), (2, LONGEST + 1), (1, 70), (3, 9)):
        inputs = sample(batch, length)
        with torch.no_grad():
            want = model()(**inputs).logits
        for found in (engine(**inputs)["logits"], reference(**inputs)["logits"]):
            assert (found - want).abs().max() < 1e-4 * want.std(), (batch, length)


def test_a_table_that_does_not_grow_is_seen() -> None:
    """The mutant: the first table for every length."""
    still = model()
    for module in still.modules():
        if hasattr(module, "rope_type"):
            module.rope_type = "default"
    short, long = sample(2, LONGEST), sample(2, 40)
    with torch.no_grad():
        assert torch.allclose(still(**short).logits, model()(**short).logits, atol=1e-5)
        assert not torch.allclose(still(**long).logits, model()(**long).logits, atol=1e-3)


def test_other_tables_are_left_alone() -> None:
    assert grow_without_memory(build("llama")) == 0 and grow_without_memory(model()) == 1
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(model().config)
    x, places = torch.randn(1, 4, 32), torch.arange(4)[None]
    want = rotary(x, places)
    assert grow_without_memory(rotary) == 1 and torch.equal(rotary(x, places)[0], want[0])
    assert "inv_freq" not in rotary.__dict__
