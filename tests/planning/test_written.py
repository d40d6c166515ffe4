"""Models that nobody has."""

from __future__ import annotations

from typing import Any

import pytest

from moec.errors import MoecError
from moec.planning.dense_equivalent import dense_equivalent
from moec.planning.written import written_shape
from tests.planning import configs

GROK: dict[str, Any] = {
    "moec_name": "Grok-1", "moec_source": "published figures", "hidden_size": 6144, "num_hidden_layers": 64,
    "num_attention_heads": 48, "num_key_value_heads": 8, "intermediate_size": 32768, "vocab_size": 131072,
    "num_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": True,
}  # fmt: skip
GPT_4: dict[str, Any] = {
    "moec_name": "GPT-4", "moec_source": "rumour", "gated": False, "hidden_size": 10752, "num_hidden_layers": 120,
    "num_attention_heads": 84, "num_key_value_heads": 84, "intermediate_size": 43008, "vocab_size": 100256,
    "num_experts": 16, "num_experts_per_tok": 2, "max_position_embeddings": 8192,
}  # fmt: skip


def test_the_rumour_of_gpt_4_is_called_one() -> None:
    """120 layers, 16 experts of 111 billion, 55 billion of attention, 2 experts a token."""
    found = written_shape(GPT_4, "config.json")
    parts = found.parts()
    assert parts["routed experts"] / 16 == pytest.approx(111e9, rel=1e-3)
    assert parts["attention"] == pytest.approx(55e9, rel=0.01)
    assert found.total == pytest.approx(1.83e12, rel=0.01) and found.active == pytest.approx(280e9, rel=0.01)
    assert "rumour" in found.notes[0] and "not a checkpoint" in found.notes[0] and found.name == "GPT-4"
    eight = written_shape(GPT_4 | {"num_experts": 8, "intermediate_size": 82000}, "config.json")
    assert eight.total == pytest.approx(1.76e12, rel=0.01)
    like = dense_equivalent(eight)
    assert like is not None and like.by_cost == pytest.approx(1.091e12, rel=0.01)


def test_grok_1() -> None:
    found = written_shape(GROK, "config.json")
    layer = 2 * 6144**2 + 2 * 6144 * 1024 + 8 * 3 * 6144 * 32768 + 8 * 6144 + 2 * 6144
    assert found.total == 64 * layer + 131072 * 6144 + 6144 == pytest.approx(314e9, rel=0.01)
    assert [s.per_token for s in found.states] == [2 * 8 * 128] * 64


@pytest.mark.parametrize(
    "config", [configs.MIXTRAL, configs.LLAMA_1B, configs.LLAMA_70B, configs.DEEPSEEK_V3], ids=lambda c: c["model_type"]
)
def test_the_formula_counts_usual_decoders_exactly(config: dict[str, Any]) -> None:
    known = {"mixtral": 46_702_792_704, "deepseek_v3": 671_026_404_352}
    found = written_shape({k: v for k, v in config.items() if k != "model_type"}, "config.json")
    llama = 1_235_814_400 if config["num_hidden_layers"] == 16 else 70_553_706_496
    assert found.total == known.get(config["model_type"], llama)


def test_biases_are_counted_where_they_are_asked_for() -> None:
    plain, biased = (written_shape(GROK | {"attention_bias": b}, "config.json").total for b in (False, True))
    assert biased - plain == 64 * (6144 + 2 * 1024)


@pytest.mark.parametrize("value", [-1, 1.5, True, "8", [8], 0])
def test_what_is_no_count(value: object) -> None:
    with pytest.raises(MoecError, match="M204") as refused:
        written_shape(GROK | {"num_hidden_layers": value}, "here.json")
    assert "num_hidden_layers" in refused.value.what and refused.value.where == "here.json"


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"num_expert": 16}, "num_expert is", "num_experts"),
        ({"num_shared_expert": 1}, "num_shared_expert is", "num_shared_experts"),
        ({"num_hidden_layer": 8}, "num_hidden_layer is", "num_hidden_layers"),
        ({"hiddensize": 8}, "hiddensize is", "hidden_size"),
        ({"n_routed_experts": 16}, "num_experts = 8 but n_routed_experts = 16", "num_experts"),
    ],
)
def test_names_that_would_be_passed_over(change: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(MoecError, match="M204") as refused:
        written_shape(GROK | change, "here.json")
    assert what in refused.value.what and fix in refused.value.fix


def test_names_of_other_parts_are_no_misspelling() -> None:
    other = {"swa_num_attention_heads": 4, "o_lora_rank": 4, "n_routed_experts": 8, "top_k": 50, "max_seq_len": 2}
    assert written_shape(GROK | other, "here.json").total == written_shape(GROK, "here.json").total


def test_layers_that_predict_more_tokens_are_counted_apart() -> None:
    """MiMo-7B: one, of a layer, a projection of two hidden vectors to one, and three norms."""
    mimo = {
        "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 11008, "vocab_size": 151680, "attention_bias": True, "num_nextn_predict_layers": 1,
        "sliding_window": 128, "use_sliding_window": False,
    }  # fmt: skip
    found = written_shape(mimo, "config.json")
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 4096 + 2 * 1024 + 3 * 4096 * 11008 + 2 * 4096
    assert found.multi_token == layer + 2 * 4096**2 + 3 * 4096
    assert found.total == 36 * layer + 2 * 151680 * 4096 + 4096 and found.states[0].window == 0
