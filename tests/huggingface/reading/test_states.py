"""What layers carry, in the types that a config asks for, and with what picks keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from moec.huggingface.shape import shape_of, shape_of_model
from tests.planning import configs, published


def test_matrices_in_float32_take_twice_the_bytes(tmp_path: Path) -> None:
    plain = published.NEMOTRON_H | {"hybrid_override_pattern": "ME*", "num_hidden_layers": 3}
    narrow = shape_of(str(configs.write(tmp_path, plain | {"mamba_ssm_cache_dtype": "bfloat16"}))).states
    wide = shape_of(str(configs.write(tmp_path, plain | {"mamba_ssm_cache_dtype": "float32"}))).states
    matrices, window = 64 * 64 * 128, 4 * (64 * 64 + 2 * 8 * 128)
    assert narrow[0].bytes(10) == 2 * (matrices + window) and wide[0].bytes(10) == 4 * matrices + 2 * window
    assert wide[1] == narrow[1] and wide[0].elements(10) == narrow[0].elements(10)


def test_qwen3_5_asks_for_it_in_its_text_config(tmp_path: Path) -> None:
    kinds = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    text = published.QWEN3_5["text_config"] | kinds | {"mamba_ssm_dtype": "float32"}
    first = shape_of(str(configs.write(tmp_path, published.QWEN3_5 | {"text_config": text}))).states[0]
    assert first.wide == 32 * 128 * 128


def test_keys_of_the_index_of_sparse_attention_are_in_the_state() -> None:
    """MiniMax-M3: one key for each token beside those of attention, as long as `update_index` of its cache keeps."""
    sizes: dict[str, Any] = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 32, "dense_intermediate_size": 64, "shared_intermediate_size": 32, "vocab_size": 100,
        "num_local_experts": 4, "num_experts_per_tok": 2, "index_n_heads": 2, "index_head_dim": 24,
        "layer_types": ["full_attention", "minimax_m3_sparse"],
    }  # fmt: skip
    config = transformers.MiniMaxM3VLTextConfig(**sizes)
    with torch.device("meta"):
        model = transformers.MiniMaxM3VLForCausalLM._from_config(config)
    assert [s.per_token for s in shape_of_model(model).states] == [2 * 2 * 16, 2 * 2 * 16 + 24]
