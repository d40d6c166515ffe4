"""Sizes that stand where a class does not look, and those that nobody says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moec.errors import MoecError
from moec.huggingface.shape import shape_of
from tests.planning import configs, published

STEP: dict[str, Any] = {  # as it is published: flat, while the class of transformers has a text_config
    "architectures": ["Step3p7FlashForCausalLM"], "model_type": "step3p7", "num_hidden_layers": 10,
    "hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1000,
    "intermediate_size": 2048, "sliding_window": 512, "layer_types": ["full_attention"] + ["sliding_attention"] * 9,
    "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256, "share_expert_dim": 256,
}  # fmt: skip


def test_flat_sizes_go_to_where_the_class_reads_them(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, STEP)))
    assert (found.hidden, found.layers, found.vocabulary) == (1024, 10, 1000)
    assert {(m.experts, m.top_k, m.intermediate) for m in found.mixtures} == {(16, 4, 256)}  # it says n_routed_experts
    assert [s.window for s in found.states] == [0] + [512] * 9
    words = " ".join(found.notes)
    assert "text_config" in words and "vision_config: transformers' defaults" in words and "does not say" not in words


@pytest.mark.parametrize("kind", ["qwen3_5_moe", "odd"])
def test_flat_sizes_of_a_class_that_transformers_would_build_with_its_defaults(kind: str, tmp_path: Path) -> None:
    whole = published.QWEN3_5
    inner = whole["text_config"] | {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    inner = {key: value for key, value in inner.items() if key != "model_type"}
    flat = {key: value for key, value in whole.items() if key != "text_config"} | inner | {"model_type": kind}
    path = str(configs.write(tmp_path, flat))
    if kind == "odd":
        assert shape_of(path).layers == 2
        return
    with pytest.raises(MoecError, match="M204") as refused:
        shape_of(path)
    assert "num_hidden_layers" in refused.value.what or "and more" in refused.value.what
    assert "text_config" in refused.value.fix


def test_defaults_are_called_ones_wherever_else_a_size_stands(tmp_path: Path) -> None:
    """`hidden_size` of what sees is not that of the text."""
    text = {key: value for key, value in published.QWEN3_5["text_config"].items() if key != "hidden_size"}
    found = shape_of(str(configs.write(tmp_path, published.QWEN3_5 | {"text_config": text})))
    assert "does not say hidden_size" in found.notes[0] and str(found.hidden) in found.notes[0]


def test_a_list_of_layers_says_how_many_they_are(tmp_path: Path) -> None:
    kinds = ["mamba", "moe", "mamba", "attention"]
    lost = ("num_hidden_layers", "hybrid_override_pattern", "layer_types")
    config = {key: value for key, value in published.NEMOTRON_H.items() if key not in lost}
    found = shape_of(str(configs.write(tmp_path, config | {"layers_block_type": kinds})))
    assert found.layers == 4 and found.notes == ()


def test_a_mixture_whose_experts_nobody_counts(tmp_path: Path) -> None:
    small = configs.MIXTRAL | {"num_hidden_layers": 1}
    for lost in ("num_experts_per_tok", "num_local_experts"):
        told = {key: value for key, value in small.items() if key != lost}
        (note,) = shape_of(str(configs.write(tmp_path, told))).notes
        assert f"does not say {lost}: transformers' defaults" in note
    assert shape_of(str(configs.write(tmp_path, small))).notes == ()
