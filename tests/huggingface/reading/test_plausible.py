"""Numbers that are typing errors."""

from __future__ import annotations

from typing import Any

import pytest

from moec.errors import MoecError
from moec.huggingface.reading.plausible import check_plausible
from tests.planning import configs, published
from tests.zoo import build


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1"),
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"intermediate_size": -8}, "intermediate_size = -8"),
        ({"num_experts_per_tok": -2}, "num_experts_per_tok = -2"),
        ({"max_position_embeddings": 0}, "max_position_embeddings = 0"),
        ({"num_attention_heads": 30}, "30 heads"),
        ({"num_key_value_heads": 7}, "7 heads of keys"),
        ({"vision_config": {"hidden_size": -1}}, "hidden_size = -1"),
    ],
)
def test_typing_errors(change: dict[str, Any], words: str) -> None:
    with pytest.raises(MoecError, match="M204") as refused:
        check_plausible(configs.MIXTRAL | change, "config.json")
    assert words in refused.value.what and refused.value.where == "config.json"


def test_real_configs_pass() -> None:
    for config, _ in (published.PUBLISHED | published.LARGER).values():
        check_plausible(config, "config.json")
    for name in ("gpt2", "bert", "gemma2", "deepseek_v3"):
        check_plausible(build(name).config.to_dict(), "config.json")
