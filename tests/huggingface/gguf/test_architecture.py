"""Settings of a model in a GGUF file, there and back, and what llama.cpp does not compute."""

from __future__ import annotations

from typing import Any

import pytest

from moec.huggingface.gguf.architecture import add_settings, config_from, rope_factors, why_not
from tests import zoo

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
KINDS = ("llama", "mixtral", "qwen3", "qwen3_moe")


def config(name: str, **changes: Any) -> Any:
    return zoo.build(name, **changes).config


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("qwen2_moe", {}, "qwen2_moe"),
        ("llama", {"attention_bias": True}, "biases"),
        ("llama", {"mlp_bias": True}, "biases"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("mixtral", {"sliding_window": 8}, "window"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "dense"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_said(name: str, changes: dict[str, Any], reason: str) -> None:
    assert reason in why_not(config(name, **changes))


def fields_of(found: Any) -> dict[str, Any]:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    architecture = {"mixtral": "llama", "qwen3_moe": "qwen3moe"}.get(found.model_type, found.model_type)
    writer = gguf.GGUFWriter(None, architecture)
    add_settings(writer, found)
    return {key: value.value for key, value in writer.kv_data[0].items()}


@pytest.mark.parametrize("name", KINDS)
def test_settings_come_back(name: str) -> None:
    rope = {"rope_type": "linear", "rope_theta": 12345.0, "factor": 4.0}
    found = config(name, rope_parameters=rope, tie_word_embeddings=False)
    assert why_not(found) == ""
    fields = fields_of(found)
    back = config_from(fields, {"output.weight": (zoo.VOCAB, 32)}, None)
    assert isinstance(back, dict)
    lost = {"bos_token_id", "eos_token_id", "pad_token_id"}  # which the vocabulary says
    own = {k: getattr(found, k, None) for k in back} | {"head_dim": getattr(found, "head_dim", None) or 8}
    assert {k: (v, own[k]) for k, v in back.items() if k not in lost and own[k] != v} == {}


def test_frequencies_of_llama_3_are_factors_and_come_back() -> None:
    found = config("llama", rope_parameters=LLAMA3, head_dim=64)
    factors = rope_factors(found)
    assert factors is not None and factors.shape == (32,)
    assert float(factors[0]) == 1.0 and float(factors[-1]) == pytest.approx(8.0)
    fields = fields_of(found)
    back = config_from(fields, {}, factors)
    assert isinstance(back, dict) and back["rope_parameters"] == LLAMA3 and back["tie_word_embeddings"]
    factors[5] *= 1.01
    assert "factors" in config_from(fields, {}, factors)

    assert "twice" in config_from(fields | {"llama.rope.scaling.factor": 2.0}, {}, factors)
    assert "another width" in config_from(fields, {}, factors[:-1])


@pytest.mark.parametrize(
    ("said", "factor"),
    [
        ({}, None),
        ({"scaling.factor": 4.0}, 4.0),  # llama.cpp's default is linear
        ({"scale_linear": 4.0}, 4.0),  # the old name
        ({"scaling.factor": 2.0, "scale_linear": 4.0}, 2.0),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({"scaling.type": "linear", "scaling.factor": 0.0}, None),
        ({"scaling.type": "linear"}, None),
    ],
)
def test_positions_are_scaled_as_llama_cpp_scales_them(said: dict[str, Any], factor: float | None) -> None:
    fields = fields_of(config("llama")) | {f"llama.rope.{name}": value for name, value in said.items()}
    back = config_from(fields, {}, None)
    assert isinstance(back, dict) and back["rope_parameters"].get("factor") == factor
    assert back["rope_parameters"]["rope_type"] == ("linear" if factor else "default")


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [
        ("attention.causal", False, True),
        ("pooling_type", 3, 0),
        ("rope.scaling.attn_factor", 1.2, 1.0),
        ("expert_gating_func", 2, 1),
        ("logit_scale", 0.5, 1.0),
        ("attention.key_length_swa", 8, None),
    ],
)
def test_a_setting_that_changes_the_model_is_refused(name: str, value: Any, known: Any) -> None:
    fields = fields_of(config("llama"))
    assert name in config_from(fields | {f"llama.{name}": value}, {}, None)
    for harmless in ({"llama.tensor_data_layout": "any"}, {} if known is None else {f"llama.{name}": known}):
        assert isinstance(config_from(fields | harmless, {}, None), dict)


def test_another_architecture_is_refused() -> None:
    assert "gemma3" in config_from({"general.architecture": "gemma3"}, {}, None)
