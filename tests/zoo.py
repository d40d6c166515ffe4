"""Tiny random models of the architectures that moec promises, for every test that needs a real model."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tests.built import remember

if TYPE_CHECKING:
    from moec.huggingface.source import HuggingFaceSource
    from moec.program.program import Program

VOCAB = 96
# one shape for all: two layers, a hidden size and head counts that differ from batch, sequence and expert sizes of the
# tests
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
}

_GROUPED: dict[str, Any] = {  # DeepSeek's experts in groups
    "intermediate_size": 56,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
}

# name -> (config class, model class, what differs from _TEXT)
_MOE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {"intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {
            "intermediate_size": 56,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "num_experts": 8,
            "num_experts_per_tok": 3,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            "intermediate_size": 56,
            "moe_intermediate_size": 24,
            "head_dim": 8,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {
            **_MLA,
            "intermediate_size": 56,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "n_group": 4,
            "topk_group": 2,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 1.5,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            **_MLA,
            **_GROUPED,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            "intermediate_size": 24,
            "head_dim": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
            "swiglu_limit": 1.0,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 8.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
                "rope_theta": 150000.0,
            },
        },
    ),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", {"intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}),
    "glm4_moe": (
        "Glm4MoeConfig",
        "Glm4MoeForCausalLM",
        {
            "intermediate_size": 56,
            "moe_intermediate_size": 24,
            "head_dim": 8,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "attention_bias": True,
            "routed_scaling_factor": 1.5,
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            "intermediate_size": 24,
            "intermediate_size_mlp": 48,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 1,
            "no_rope_layer_interval": 2,
            "attention_chunk_size": 7,
            "floor_scale": 4,
        },
    ),
    "granite_moe": (
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        {
            "intermediate_size": 24,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "embedding_multiplier": 2.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.3,
        },
    ),
}
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 24,
    "patch_size": 8,
}
_DENSE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"intermediate_size": 48, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"intermediate_size": 48}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"intermediate_size": 48, "head_dim": 8}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"intermediate_size": 48, "sliding_window": 5}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"intermediate_size": 48, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"intermediate_size": 48}),
    "nemotron": ("NemotronConfig", "NemotronForCausalLM", {"intermediate_size": 48, "head_dim": 8}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_inner": 48}),
    "bert": ("BertConfig", "BertModel", {"intermediate_size": 48}),
    "vit": ("ViTConfig", "ViTForImageClassification", _VIT),
}
_DELTA: dict[str, Any] = {
    "head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
_SHARED: dict[str, Any] = {
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
_KIMI: dict[str, Any] = {
    **{name: size for name, size in _MLA.items() if name != "q_lora_rank"},
    "intermediate_size": 56,
    "moe_intermediate_size": 24,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "layer_types": ["linear_attention", "full_attention"],
}
# decoders that carry more than keys and values from token to token
_HYBRID: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lfm2": (
        "Lfm2Config",
        "Lfm2ForCausalLM",
        {"intermediate_size": 48, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]},
    ),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        "Lfm2MoeForCausalLM",
        {
            "intermediate_size": 48,
            "moe_intermediate_size": 24,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM", {**_DELTA, **_SHARED, "intermediate_size": 56}),
    "qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", {**_DELTA, "intermediate_size": 56}),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM", {**_DELTA, **_SHARED}),
    "olmo_hybrid": (
        "OlmoHybridConfig",
        "OlmoHybridForCausalLM",
        {
            **{name: size for name, size in _DELTA.items() if name != "head_dim"},
            "intermediate_size": 56,
            "linear_num_key_heads": 4,
        },
    ),
    "kimi_linear": (
        "KimiLinearConfig",
        "KimiLinearForCausalLM",
        {**_KIMI, "linear_head_dim": 8, "linear_num_heads": 2},
    ),
    "bailing_hybrid": (
        "BailingHybridConfig",
        "BailingHybridForCausalLM",
        {**_KIMI, "head_dim": 8, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "num_mtp_layers": 0},
    ),
}


def architectures(dense: bool = False) -> dict[str, str]:
    """Name -> class of the mixtures, or of the dense models that are upcycled."""
    return {name: entry[1] for name, entry in (_DENSE if dense else _MOE).items()}


def moe_configs() -> dict[str, Any]:
    """Name -> tiny `PretrainedConfig` of each mixture-of-experts architecture."""
    return {name: _config(name) for name in _MOE}


def dense_configs() -> dict[str, Any]:
    """Name -> tiny `PretrainedConfig` of each dense architecture."""
    return {name: _config(name) for name in _DENSE}


def build(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """The random model in memory, in eval mode and float32; `changes` are entries of its config."""
    import transformers

    config = _config(name, **changes)
    model: nn.Module = getattr(transformers, config.architectures[0])(config)
    randomize(model.eval(), seed)
    remember(model, f"{name} {sorted(changes.items())}")
    return model


@cache
def source(name: str, cache: bool = True) -> HuggingFaceSource:
    """The random model as a source. One a process: tests share it and do not change it."""
    from moec.huggingface.source import HuggingFaceSource

    return HuggingFaceSource.from_model(build(name), cache=cache)


def captured(name: str, cache: bool = True) -> Program:
    """The random model's program, captured once a process; each caller has a copy of its own."""
    return _captured(name, cache).clone()


@cache
def _captured(name: str, cache: bool) -> Program:
    return source(name, cache).capture()


def save(name: str, folder: str | Path, seed: int = 0, **changes: Any) -> str:
    """Write the random model as a Hugging Face directory (config.json, model.safetensors); returns the folder's
    path."""
    build(name, seed, **changes).save_pretrained(folder)  # type: ignore[operator]  # a PreTrainedModel
    return str(folder)


def edit_config(folder: str | Path, **changes: Any) -> None:
    """Change entries of a written config.json, for tests of bad input."""
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def randomize(model: nn.Module, seed: int) -> None:
    """Give every parameter, and every buffer that a checkpoint holds, random values with enough spread to tell models
    apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted({**dict(model.named_parameters()), **_saved_buffers(model)}.items()):
            if value.is_floating_point():
                value.copy_(_random(name, value, generator))


def _random(name: str, old: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(old.shape, generator=generator)
    if old.dim() == 1 and bool((old == 1).all()):
        return 1 + 0.1 * noise  # a norm's scale
    if "router" in name or name.endswith("gate.weight"):
        return 0.4 * noise  # tokens should disagree about their experts
    return (1.0 if "sinks" in name else 0.2) * noise if old.dim() == 1 else 0.15 * noise


def _saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def _config(name: str, **more: Any) -> Any:
    import transformers

    config_class, model_class, changes = {**_MOE, **_DENSE, **_HYBRID}[name]
    config = getattr(transformers, config_class)(**{**({} if name == "vit" else _TEXT), **changes, **more})
    config.architectures = [model_class]
    return config
