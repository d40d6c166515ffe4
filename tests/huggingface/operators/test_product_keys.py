"""Doge's experts, looked up by product keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.huggingface.operators import product_keys
from moec.huggingface.operators.product_keys import adapt_product_keys
from moec.huggingface.source import HuggingFaceSource
from moec.report.inspection import inspect_program
from tests import whole_zoo


def layers(**changes: Any) -> Any:
    from transformers import DogeConfig
    from transformers.models.doge.modeling_doge import DogeCDMoE

    found: Any = nn.Module()
    found.config = DogeConfig(hidden_size=32, is_moe=True, num_experts=36, num_experts_per_tok=4, **changes)
    with torch.device("meta"):
        found.mlp = DogeCDMoE(found.config)
    return found


@pytest.mark.parametrize("renormalised", [True, False])
def test_they_are_found_and_proven(renormalised: bool) -> None:
    assert adapt_product_keys(layers(norm_topk_prob=renormalised)) == 1
    assert adapt_product_keys(nn.Linear(2, 2)) == 0


def test_keys_that_stay_with_their_own_token_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the paper says, and transformers' code does not do."""
    right = product_keys._forward

    def apart(self: Any, hidden_states: Any) -> Any:
        rows = [right(self, row[None, None]) for row in hidden_states.flatten(0, 1)]
        return torch.cat([row[0] for row in rows], 1).view(hidden_states.shape), None

    monkeypatch.setattr(product_keys, "_forward", apart)
    with pytest.raises(MoecError, match="does not compute what its parts suggest") as error:
        adapt_product_keys(layers())
    assert error.value.code == "M206"


def test_padding_says_what_it_says_in_eager() -> None:
    """All of a call's tokens choose a token's experts, padding among them: it is right where padding is."""
    source = HuggingFaceSource.from_model(whole_zoo.build("doge"))
    program = source.capture()
    engine, eager = EagerEngine(program), source.reference()
    for sizes in ({"batch": 3, "sequence": 7, "past_sequence": 0}, {"batch": 5, "sequence": 4, "past_sequence": 6}):
        sample = source.sample(sizes, 3)
        assert not sample["attention_mask"].all()
        got, want = engine(**sample)["logits"], eager(**sample)["logits"]
        assert float((got - want).abs().max() / want.std()) < 1e-4
    assert any("padding among" in note for note in source.account().notes)
    blocks = [block for block in inspect_program(program).blocks if block.kind == "look-ups"]
    assert [(b.experts, b.top_k, b.hidden, b.intermediate) for b in blocks] == [(16, 2, 32, 1)] * 2
    assert blocks[0].module == "model.layers.0.mlp" and blocks[0].parameters == 2 * 16 * 32
    assert blocks[0].active_parameters == 2 * 2 * 32
