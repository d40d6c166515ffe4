"""Published families, exact to the parameter; configs of no class of transformers, and configs by hand."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.initialization import no_init_weights

from moec.errors import MoecError
from moec.huggingface.shape import shape_of, shape_of_model
from tests.planning import configs, published
from tests.zoo import build

FAMILIES = published.PUBLISHED | published.LARGER


def on_meta(config: dict[str, Any]) -> Any:
    """The model of a config as transformers itself builds it, without memory."""
    cls = getattr(transformers, config["architectures"][0])
    sizes = {key: value for key, value in deepcopy(config).items() if key != "model_type"}
    with no_init_weights(), torch.device("meta"):
        model = cls._from_config(cls.config_class.from_dict(sizes))
    model.tie_weights()
    return model


def unused(model: Any, top_k: int) -> int:
    """Parameters that a token of text does not use: of experts by their names, and of all that sees."""
    idle = 0
    for name, value in model.named_parameters():
        if re.search(r"vision|visual|multi_modal", name):
            idle += value.numel()
        elif re.search(r"\.experts\.|(input|output)_linear\.weight$", name) and "router" not in name:  # JetMoE's
            experts = 16 if "experts.mlp" in name else value.shape[0]  # DBRX's lie one below the other
            idle += value.numel() // experts * (experts - top_k) if value.dim() > 1 else 0
    return idle


def top_k_of(config: dict[str, Any]) -> int:
    flat = config | config.get("text_config", {}) | config.get("ffn_config", {})
    names = ("num_experts_per_tok", "top_k_experts", "moe_top_k")
    return next((int(flat[name]) for name in names if name in flat), 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_counted_to_the_last_parameter(name: str) -> None:
    config, known = FAMILIES[name]
    model = on_meta(config)
    found = shape_of_model(model)
    independent = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    assert found.total == independent == sum(found.parts().values()) and known in (0, independent)
    assert found.active == independent - unused(model, top_k_of(config))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    table = 0 if tied else model.get_input_embeddings().weight.numel()
    assert found.active_without_embedding == found.active - table
    assert found.parts()["other"] < independent / 10_000 and found.unknown == ()
    assert bool(found.mixtures) == bool(top_k_of(config))


def test_deepseek_publishes_its_selection_biases_too(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, configs.DEEPSEEK_V3)))
    assert found.total + 58 * 256 == 671_026_419_200  # buffers in transformers


def test_what_sees_is_a_part_of_its_own_and_carries_nothing(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, published.QWEN3_5)))
    text = sum(t.count for t in found.tensors if not t.name.startswith("model.visual."))
    assert found.parts()["vision and audio"] == found.total - text > 4e8
    assert len(found.states) == found.layers == 40
    with_images = found.active + found.parts()["vision and audio"]
    assert with_images == found.total - sum(m.idle for m in found.mixtures)
    layer = sum(t.count for t in found.tensors if ".layers.39." in t.name)
    assert found.multi_token == layer + 2 * 2048**2 + 3 * 2048


def test_sizes_that_differ_by_layer(tmp_path: Path) -> None:
    """Gemma 4: five layers with a window and heads of 256, then one with heads of 512 that sees all."""
    states = shape_of(str(configs.write(tmp_path, published.GEMMA_4))).states
    assert [(s.per_token, s.window) for s in states[4:6]] == [(2 * 8 * 256, 1024), (2 * 2 * 512, 0)]


def test_compressed_attention_keeps_a_row_of_a_few_tokens(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, published.DEEPSEEK_V4)))
    kinds = {(s.per_token, s.window, s.every) for s in found.states}
    assert kinds == {(512, 128, 1), (512 + 128, 0, 4), (512, 0, 128)}
    far = sum(s.elements(4096) for s in found.states if s.every == 4)
    assert far == 21 * 1024 * 640  # 21 layers, a row of four tokens with its index's key


def test_layers_without_a_state_are_known_to_have_none(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, published.NEMOTRON_H)))
    assert len(found.states) == 23 + 6 and found.unknown == ()
    assert found.states[0].fixed == 64 * 64 * 128 + 4 * (64 * 64 + 2 * 8 * 128)


def test_a_class_that_a_config_names_counts_for_its_own_type(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, published.KIMI_K2)))
    assert found.total == 1_026_408_209_408  # without the selection biases: 60 layers of 384
    assert "kimi_k2" in found.notes[0] and "DeepseekV3ForCausalLM" in found.notes[0]


def test_defaults_that_a_config_does_not_override_are_said(tmp_path: Path) -> None:
    bare = configs.write(tmp_path, {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]})
    assert "hidden_size, num_hidden_layers, vocab_size" in shape_of(str(bare)).notes[0]
    assert shape_of(str(configs.write(tmp_path, configs.MIXTRAL))).notes == ()
    gpt2 = build("gpt2").config.to_dict()  # calls them n_embd and n_layer
    assert shape_of(str(configs.write(tmp_path, gpt2))).notes == ()


def test_a_rumour_stays_one_where_a_class_fits(tmp_path: Path) -> None:
    found = shape_of(str(configs.write(tmp_path, configs.MIXTRAL | {"moec_source": "rumour"})))
    assert found.notes == ("sizes written by hand (rumour), not a checkpoint",)


def test_an_architecture_that_nobody_knows_is_counted_as_a_usual_decoder(tmp_path: Path) -> None:
    odd = {key: value for key, value in configs.MIXTRAL.items() if key != "architectures"} | {"model_type": "odd"}
    found = shape_of(str(configs.write(tmp_path, odd)))
    assert found.total == 46_702_792_704 and "'odd'" in found.notes[0] and "usual decoder" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None, "num_experts_per_tok": None}, ["hidden_size", "num_experts_per_tok"]),
        ({"linear_attn_config": {"kda": 1}}, ["linear_attn_config"]),
        ({"num_attention_heads": 30}, ["30 heads"]),
        ({"num_key_value_heads": 7}, ["7 heads"]),
        ({"num_experts_per_tok": 9}, ["num_experts_per_tok = 9", "8 at most"]),
        ({"hidden_size": -1}, ["hidden_size"]),
        ({"vocab_size": "many"}, ["vocab_size"]),
    ],
)
@pytest.mark.parametrize("kind", [None, "odd"])
def test_configs_that_say_too_little_or_too_much(
    change: dict[str, Any], words: list[str], kind: str | None, tmp_path: Path
) -> None:
    wrong = {k: v for k, v in (configs.MIXTRAL | change).items() if v is not None and k != "architectures"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(wrong | {"model_type": kind}))
    with pytest.raises(MoecError, match=r"M20[46]") as refused:
        shape_of(str(path))
    assert all(word in refused.value.what for word in words) and refused.value.fix


def test_a_config_that_was_written_by_hand_is_not_downloaded_again(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 8,}')
    with pytest.raises(MoecError, match="line 1") as refused:
        shape_of(str(path))
    assert refused.value.fix.startswith("correct it")
