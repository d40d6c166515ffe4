"""Doge's attention to the keys with the largest weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from moec.errors import MoecError
from moec.huggingface.operators import dynamic_mask
from moec.huggingface.operators.dynamic_mask import adapt_dynamic_mask


def model(kept: int) -> Any:
    from transformers import DogeConfig
    from transformers.models.doge.modeling_doge import DogeAttention

    found: Any = nn.Module()
    found.config = DogeConfig(hidden_size=32, num_attention_heads=4, keep_window_size=kept, max_position_embeddings=64)
    with torch.device("meta"):
        found.attention = DogeAttention(found.config, 0)
    return found


def test_it_is_found_and_proven_where_a_text_can_be_longer() -> None:
    assert adapt_dynamic_mask(model(9)) == 1 and adapt_dynamic_mask(model(64)) == 0


def test_a_mask_that_keeps_one_key_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dynamic_mask._mask

    def wide(self: Any, hidden: Any, numbers: Any, kept: int, mask: Any) -> Any:
        return right(self, hidden, numbers, kept + 1, mask)

    monkeypatch.setattr(dynamic_mask, "_mask", wide)
    with pytest.raises(MoecError, match="does not compute what its parts suggest") as error:
        adapt_dynamic_mask(model(9))
    assert error.value.code == "M206"
