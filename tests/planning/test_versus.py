"""Dense or mixture, by the bytes of a token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from moec.huggingface.shape import shape_of
from moec.planning.formats import FORMATS
from moec.planning.versus import Beside, beside
from tests.planning import configs


def less(rows: Sequence[Beside]) -> list[int]:
    """Batches at which the first model reads less."""
    return [row.batch for row in rows if row.bytes[0] < row.bytes[1]]


def test_a_mixture_of_13_billion_active_loses_to_a_dense_13_billion_between_batch_2_and_8(tmp_path: Path) -> None:
    """The honest curve of small batches: at 1 both read about 26 GB, at 4 the mixture 16 a token, the dense 6.4."""
    mixture = shape_of(str(configs.write(tmp_path, configs.MIXTRAL)))
    wide = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40}
    more = {"num_key_value_heads": 40, "head_dim": 128, "vocab_size": 32000, "tie_word_embeddings": False}
    dense = shape_of(str(configs.write(tmp_path, configs.LLAMA_1B | wide | more)))  # Llama-2-13B's shape
    rows = {row.batch: row for row in beside(mixture, dense, FORMATS["bf16"], 1)}
    assert rows[1].bytes[0] == pytest.approx(rows[1].bytes[1], rel=0.03)
    assert rows[4].bytes[0] / 1e9 == pytest.approx(16.2, rel=0.01) and rows[4].bytes[1] < 6.6e9
    assert rows[64].bytes[0] > rows[64].bytes[1] and rows[1].flops[0] < rows[1].flops[1]


def test_the_answer_turns_twice_where_the_cache_takes_over(tmp_path: Path) -> None:
    """Qwen3-30B-A3B beside a dense model of 13 billion: less at 1 to 4, more at 8 to 128, less again where the dense
    model's cache, which is twice as large a token, is most of what is read."""
    mixture = shape_of(str(configs.write(tmp_path, configs.QWEN3_30B)))
    half = {"num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40}
    dense = shape_of(str(configs.write(tmp_path, configs.QWEN2_5_72B | half)))
    assert less(beside(mixture, dense, FORMATS["bf16"], 4096)) == [1, 2, 4, 256, 512, 1024]
    assert less(beside(mixture, dense, FORMATS["bf16"], 1)) == [1, 2, 4]
    assert less(beside(mixture, mixture, FORMATS["bf16"], 4096)) == []
