"""Lengths of a config are found by their names."""

from __future__ import annotations

import transformers

from moec.huggingface.lengths import config_lengths


def test_windows_chunks_and_contexts_are_found_and_counts_are_not() -> None:
    config = transformers.Qwen2Config(max_position_embeddings=512, sliding_window=200, max_window_layers=28)
    config.keep_window_size, config.block_size, config.num_random_blocks = 64, 16, 3
    found = config_lengths(config)
    assert found == {"max_position_embeddings": 512, "keep_window_size": 64, "block_size": 16} | (
        {"sliding_window": 200} if config.sliding_window else {}
    )


def test_the_rotary_embeddings_lengths_and_lists_are_found() -> None:
    config = transformers.Phi3Config(max_position_embeddings=256)
    config.rope_parameters = {"rope_type": "yarn", "original_max_position_embeddings": 32}
    config.attention_window = [64, 128]
    found = config_lengths(config)
    assert found["attention_window.0"] == 64 and found["attention_window.1"] == 128
    assert 32 in found.values() and 256 in found.values()


def test_switches_and_missing_values_are_no_lengths() -> None:
    config = transformers.LlamaConfig()
    config.use_sliding_window, config.some_window = True, None
    assert not {"use_sliding_window", "some_window"} & set(config_lengths(config))
