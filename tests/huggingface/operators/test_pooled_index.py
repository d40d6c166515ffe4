"""GLM-5-Next's index over pools of tokens, with as many pools as the length says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moec.errors import MoecError
from moec.huggingface.operators import pooled_index
from moec.huggingface.operators.pooled_index import adapt_pooled_index


def model(**changes: Any) -> nn.Module:
    from transformers import Glm5NextTextConfig
    from transformers.models.glm5_next.modeling_glm5_next import Glm5NextTextIndexer

    config = Glm5NextTextConfig(hidden_size=32, q_lora_rank=24, index_head_dim=16, index_n_heads=2, **changes)
    found = nn.Module()
    with torch.device("meta"):
        found.indexer = Glm5NextTextIndexer(config, 0)
    return found


@pytest.mark.parametrize("tail", [True, False])
def test_it_is_found_and_proven(tail: bool) -> None:
    assert adapt_pooled_index(model(index_kpool_always_select_tail=tail)) == 1
    assert adapt_pooled_index(nn.Linear(2, 2)) == 0


def test_pools_that_begin_one_token_late_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pooled_index._all_pools

    def late(self: Any, packed_states: Any) -> Any:
        keys, places, full = right(self, packed_states)
        return keys, (places + 1).clamp(max=packed_states.shape[1] - 1), full

    monkeypatch.setattr(pooled_index, "_all_pools", late)
    with pytest.raises(MoecError, match="does not choose the tokens") as error:
        adapt_pooled_index(model())
    assert error.value.code == "M206"
