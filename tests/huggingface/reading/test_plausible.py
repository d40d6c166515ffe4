"""Numbers that are typing errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import moec
from moec.errors import MoecError
from moec.huggingface.reading.plausible import check_plausible
from tests.planning import configs, published
from tests.zoo import build, edit_config, save


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1"),
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"intermediate_size": -8}, "intermediate_size = -8"),
        ({"num_experts_per_tok": -2}, "num_experts_per_tok = -2"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok = 0"),
        ({"num_experts_per_tok": 9}, "8 at most"),
        ({"text_config": {"num_experts": 4, "num_experts_per_tok": 5}}, "4 at most"),
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


def test_a_folder_whose_tokens_go_to_more_experts_than_there_are_is_not_opened(tmp_path: Path) -> None:
    save("mixtral", tmp_path)
    edit_config(tmp_path, num_experts_per_tok=20)
    with pytest.raises(MoecError, match="M204") as refused:
        moec.open_source(tmp_path)
    assert "8 at most" in refused.value.what


def test_real_configs_pass() -> None:
    for config, _ in (published.PUBLISHED | published.LARGER).values():
        check_plausible(config, "config.json")
    for name in ("gpt2", "bert", "gemma2", "deepseek_v3"):
        check_plausible(build(name).config.to_dict(), "config.json")
