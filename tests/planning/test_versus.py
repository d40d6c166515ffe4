"""Dense or mixture, by the bytes of a token."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.huggingface.shape import shape_of
from moec.planning.formats import FORMATS
from moec.planning.versus import beside, turns
from tests.planning import configs


def test_a_mixture_of_13_billion_active_loses_to_a_dense_13_billion_between_batch_2_and_8(tmp_path: Path) -> None:
    """The honest curve of small batches: at 1 both read about 26 GB, at 4 the mixture 16 a token, the dense 6.4."""
    mixture = shape_of(str(configs.write(tmp_path, configs.MIXTRAL)))
    wide = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
    more = {"num_key_value_heads": 40, "head_dim": 128, "vocab_size": 32000, "tie_word_embeddings": False}
    dense = shape_of(str(configs.write(tmp_path, configs.LLAMA_1B | wide | more)))  # Llama-2-13B's shape
    rows = {row.batch: row for row in beside(mixture, dense, FORMATS["bf16"], 1)}
    assert rows[1].bytes[0] == pytest.approx(rows[1].bytes[1], rel=0.03)
    assert rows[4].bytes[0] / 1e9 == pytest.approx(16.2, rel=0.01) and rows[4].bytes[1] < 6.6e9
    assert not rows[64].first_reads_less and rows[1].flops[0] < rows[1].flops[1]


def test_the_answer_turns_twice_where_the_cache_takes_over(tmp_path: Path) -> None:
    """Qwen3-30B-A3B beside a dense model of 13 billion: less at 1 to 4, more at 8 to 128, less again where the dense
    model's cache, which is twice as large a token, is most of what is read."""
    mixture = shape_of(str(configs.write(tmp_path, configs.QWEN3_30B)))
    half = {"num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40}
    dense = shape_of(str(configs.write(tmp_path, configs.QWEN2_5_72B | half)))
    assert turns(beside(mixture, dense, FORMATS["bf16"], 4096)) == [8, 256]
    assert turns(beside(mixture, dense, FORMATS["bf16"], 1)) == [8]
    assert turns(beside(mixture, mixture, FORMATS["bf16"], 4096)) == []
