"""Rules about what could be done to a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.planning.advice_rewrites import YIELD
from tests.planning import configs
from tests.planning.test_advice import advice, shape

pytestmark = pytest.mark.usefixtures("roofline_only")


def test_fewer_bits_read_less(tmp_path: Path) -> None:
    (found,) = advice("quantize", shape(tmp_path, configs.MIXTRAL), context=1)
    assert found.figures["ratio"] == pytest.approx(16 / 4.25, rel=0.02) and "97%" in found.text
    assert advice("quantize", shape(tmp_path, configs.MIXTRAL), ("int2",)) == []


def test_a_draft_pays_for_a_dense_model_and_not_for_a_mixture_at_one_text(tmp_path: Path) -> None:
    """Four tokens at once touch 29 of Qwen3's 128 experts where one touches 8; at 64 texts all are touched anyway."""
    assert pytest.approx(2.533) == YIELD
    dense, _ = advice("speculate", shape(tmp_path, configs.LLAMA_70B), batches=(1, 64))
    assert dense.verdict == "pays" and dense.figures["ratio"] == pytest.approx(1, abs=1e-3)
    few, many = advice("speculate", shape(tmp_path, configs.DEEPSEEK_V3), ("fp8",), (), (1, 64), 4096)
    assert few.verdict == "hardly pays" and "30.5 experts a layer in place of 8.0" in few.text
    assert many.verdict == "pays" and many.figures["ratio"] == pytest.approx(1.14, abs=0.01)
    (bound,) = advice("speculate", shape(tmp_path, configs.LLAMA_1B), ("bf16",), ("h200",), (512,), 1)
    assert bound.verdict == "does not pay" and "times as long as one token on h200" in bound.text


def test_upcycle_holds_more_and_carve_reads_less(tmp_path: Path) -> None:
    """Llama-3-70B: 80 networks of 704,643,072 parameters; eight copies of each, and 80 routers of 8 x 8,192."""
    llama = shape(tmp_path, configs.LLAMA_70B)
    (upcycled,) = advice("upcycle", llama)
    assert upcycled.figures["total"] == 70_553_706_496 + 7 * 80 * 704_643_072 + 80 * 8 * 8192
    assert upcycled.verdict == "with training only" and "465 B" in upcycled.text
    (carved,) = advice("carve", llama, batches=(1, 64))
    assert carved.verdict == "for small batches" and carved.figures["share"] == pytest.approx(0.80, abs=0.005)
    assert carved.figures["share_at_most"] > 0.99 and "keep all bytes in memory" in carved.text
    (left,) = advice("carve", llama, batches=(8,))
    assert left.verdict == "leave it" and left.text.endswith("leave it dense")


def test_a_mixture_is_left_and_half_its_experts_save_memory_only(tmp_path: Path) -> None:
    mixtral = shape(tmp_path, configs.MIXTRAL)
    (found,) = advice("leave", mixtral)
    assert found.figures["weights_bytes"] == pytest.approx(93.4e9, rel=1e-3)
    assert found.figures["weights_bytes_of_half"] == pytest.approx(48.3e9, rel=1e-3)
    assert advice("carve", mixtral) == [] and advice("upcycle", mixtral) == []
