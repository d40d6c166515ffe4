"""Counts from a config alone: equal to formulas written down here, to published figures and to models that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moec.huggingface.shape import shape_of, shape_of_model
from tests.planning import configs
from tests.zoo import build, dense_configs, moe_configs


def attention(c: dict[str, Any]) -> int:
    """Grouped-query attention: four projections."""
    size = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    queries, keys = c["num_attention_heads"] * size, c["num_key_value_heads"] * size
    biases = queries + 2 * keys if c["model_type"] in ("qwen2", "qwen2_moe") else 0
    norms = 2 * size if c["model_type"] == "qwen3_moe" else queries + keys if c["model_type"] == "olmoe" else 0
    return 2 * c["hidden_size"] * (queries + keys) + biases + norms


def latent(c: dict[str, Any]) -> int:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): down, norm, up."""
    d, heads, q, kv = c["hidden_size"], c["num_attention_heads"], c["q_lora_rank"], c["kv_lora_rank"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    queries = d * q + q + q * heads * (nope + rope)
    return queries + d * (kv + rope) + kv + kv * heads * (nope + value) + heads * value * d


def formula(c: dict[str, Any]) -> tuple[int, int]:
    """All parameters and those that a token uses, in closed form."""
    d, layers = c["hidden_size"], c["num_hidden_layers"]
    experts = c.get("num_experts") or c.get("n_routed_experts") or c.get("num_local_experts") or 0
    width = c.get("moe_intermediate_size") or c["intermediate_size"]
    dense = c.get("first_k_dense_replace", 0) if experts else layers
    each, shared = 3 * d * width, 3 * d * c.get("shared_expert_intermediate_size", 0)
    gate = d if shared else 0
    shared += 3 * d * width * c.get("n_shared_experts", 0)
    block = (latent(c) if "kv_lora_rank" in c else attention(c)) + 2 * d
    tables = d * c["vocab_size"] * (1 if c["tie_word_embeddings"] else 2)
    mixtures = (layers - dense) * (experts * each + shared + gate + d * experts)
    total = tables + d + layers * block + dense * 3 * d * c["intermediate_size"] + mixtures
    return total, total - (layers - dense) * each * (experts - c.get("num_experts_per_tok", 0) if experts else 0)


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (configs.MIXTRAL, (46_702_792_704, 12.88e9)),
        (configs.MIXTRAL_22B, (140_630_071_296, 39.16e9)),
        (configs.QWEN3_30B, (30_532_122_624, 3.35e9)),
        (configs.QWEN3_235B, (235_093_634_560, 22.19e9)),
        (configs.QWEN1_5, (14_315_784_192, 2.69e9)),
        (configs.DEEPSEEK_V3, (671_026_404_352, 37.55e9)),
        (configs.OLMOE, (6_919_161_856, 1.28e9)),
        (configs.LLAMA_1B, (1_235_814_400, 1.236e9)),
        (configs.LLAMA_70B, (70_553_706_496, 70.55e9)),
        (configs.QWEN2_5_72B, (72_706_203_648, 72.71e9)),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_counts_are_exact(config: dict[str, Any], published: tuple[int, float], tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, config)))
    assert (found.total, found.active) == formula(config)
    assert found.total == published[0] and found.active == pytest.approx(published[1], rel=2e-3)
    assert found.parts()["other"] == 0 and sum(found.parts().values()) == found.total


def test_a_layer_less_is_another_count(tmp_path: Path) -> None:
    fewer = configs.MIXTRAL | {"num_hidden_layers": 31}
    assert shape_of(str(configs.write(tmp_path, fewer))).total != formula(configs.MIXTRAL)[0]


def test_parts_and_mixtures_of_deepseek(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, configs.DEEPSEEK_V3)))
    parts = found.parts()
    assert parts["routed experts"] == 58 * 256 * 3 * 7168 * 2048
    assert parts["shared experts"] == 58 * 3 * 7168 * 2048
    assert parts["dense FFN"] == 3 * 3 * 7168 * 18432 and parts["router"] == 58 * 256 * 7168
    assert {(m.experts, m.top_k, m.hidden, m.intermediate) for m in found.mixtures} == {(256, 8, 7168, 2048)}
    assert found.active - found.active_without_embedding == 129280 * 7168
    layer = latent(configs.DEEPSEEK_V3) + 2 * 7168 + 257 * 3 * 7168 * 2048 + 256 * 7168
    assert found.multi_token == layer + 2 * 7168**2 + 3 * 7168  # apart from the 671 billion


def test_a_tied_table_is_the_head_and_counts(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, configs.LLAMA_1B)))
    assert found.active_without_embedding == found.total and found.parts()["output head"] == 128256 * 2048


def test_a_gpt_oss_counts_biases_and_transposed_experts(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, configs.GPT_OSS)))
    assert found.total == 116_829_156_672
    assert found.mixtures[0].parameters == 128 * (3 * 2880 * 2880 + 3 * 2880)
    assert [s.window for s in found.states[:2]] == [128, 0]


@pytest.mark.parametrize("name", [*moe_configs(), *dense_configs()])
def test_every_architecture_is_counted_like_the_model_that_exists(name: str) -> None:
    model = build(name)
    found = shape_of_model(model)
    assert found.total == sum(p.numel() for p in model.parameters())
    assert bool(found.mixtures) == (name in moe_configs())
    assert all(m.top_k < m.experts and m.intermediate in (24, 48) and m.hidden == 32 for m in found.mixtures)
    parts = found.parts()
    assert parts["routed experts"] == sum(m.parameters for m in found.mixtures)
    assert parts["other"] <= found.total // 50  # a class token, a pooler
    assert bool(parts["router"]) == bool(found.mixtures)


@pytest.mark.parametrize("name", [n for n in (*moe_configs(), *dense_configs()) if n not in ("bert", "vit")])
def test_states_are_as_large_as_the_cache_of_a_run(name: str) -> None:
    from transformers import DynamicCache

    model, length = build(name), 12
    found = shape_of_model(model)
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.ones((1, length), dtype=torch.int64), past_key_values=cache, use_cache=True)
    kept = [layer.keys.numel() + layer.values.numel() for layer in cache.layers]
    if name.startswith("deepseek"):  # transformers keeps what the compressed vector is unpacked to
        assert {(s.kind, s.per_token) for s in found.states} == {("compressed keys and values", 16 + 8)}
    else:
        assert [s.per_token * length for s in found.states] == kept
    assert found.unknown == ()


def test_windows_are_read_layer_by_layer() -> None:
    windows = {name: [s.window for s in shape_of_model(build(name)).states] for name in ("mistral", "gemma2", "llama")}
    assert windows == {"mistral": [5, 5], "gemma2": [5, 0], "llama": [0, 0]}


def test_a_recurrent_state_does_not_grow(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, configs.QWEN3_NEXT)))
    kinds = [s.kind for s in found.states[:4]]
    assert kinds == ["recurrent"] * 3 + ["keys and values"]
    assert found.states[0].elements(1) == found.states[0].elements(10**6) == 32 * 128 * 128 + 4 * (2 * 2048 + 4096)
