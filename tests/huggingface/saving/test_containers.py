"""The choice of a container: exact, or refused with every reason. That the chosen one is exact is
tests/huggingface/saving/test_save.py's."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moec.dialect import Routing
from moec.huggingface.saving.containers import Container, Upcycled, UpcycledLayer, choose
from moec.weights.lazy import zeros

BLOCK = UpcycledLayer(*(zeros((1,), torch.float32) for _ in range(3)))
COPIES = Upcycled({0: BLOCK, 1: BLOCK}, 2, Routing(2), 8, 48, True, torch.float32)
SHARDS = replace(COPIES, routing=Routing(4, groups=8, top_groups=1), experts=32, intermediate=12)


def config(model_type: str, **entries: Any) -> Any:
    return SimpleNamespace(model_type=model_type, **entries)


@pytest.mark.parametrize(
    ("source", "model", "expected"),
    [
        (config("llama"), COPIES, "mixtral"),
        (config("llama"), replace(SHARDS, dtype=torch.float16), "glm4_moe"),
        (config("mistral", sliding_window=4), SHARDS, "mixtral"),
        (
            config("qwen3", layer_types=["full_attention"] * 2, sliding_window=4),
            replace(SHARDS, dtype=torch.bfloat16),
            "glm4_moe",
        ),
        (config("qwen3", layer_types=["sliding_attention"] * 2, sliding_window=4), COPIES, "qwen3_moe"),
        (config("qwen2", layer_types=["full_attention"] * 2), replace(COPIES, blocks={1: BLOCK}), "glm4_moe"),
    ],
)
def test_the_first_exact_one(source: Any, model: Upcycled, expected: str) -> None:
    found = choose(source, model)
    assert isinstance(found, Container) and found.model_type == expected


def test_all_reasons_are_given() -> None:
    reason = choose(config("mistral", sliding_window=4), replace(SHARDS, dtype=torch.float16))
    assert (
        isinstance(reason, str)
        and "mixtral: its router computes in float16" in reason
        and "glm4_moe: it has no sliding window" in reason
    )
    assert "gemma" in str(choose(config("gemma"), COPIES))
