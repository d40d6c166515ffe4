"""Small random models for `long_run.py`, one for each kind of state that is carried from token to token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import moec

VOCABULARY = 512
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# kind of state -> what the model's classes are called, and the rest of its config
STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "keys": ("Qwen3Moe", {"head_dim": 32, "moe_intermediate_size": 128, "num_experts": 8, "norm_topk_prob": True}),
    "conv": (
        "Lfm2Moe",
        {
            "intermediate_size": 128,
            "moe_intermediate_size": 128,
            "num_experts": 8,
            "num_dense_layers": 1,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
        },
    ),
    "delta": (
        "Qwen3Next",
        {
            "head_dim": 32,
            "intermediate_size": 128,
            "moe_intermediate_size": 128,
            "shared_expert_intermediate_size": 128,
            "num_experts": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
    "mamba": (
        "Jamba",
        {
            "intermediate_size": 128,
            "num_experts": 8,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "mamba_d_state": 16,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
    ),
    "mamba2": (
        "GraniteMoeHybrid",
        {
            "intermediate_size": 128,
            "shared_intermediate_size": 128,
            "num_local_experts": 8,
            "mamba_n_heads": 8,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "layer_types": ["mamba", "mamba", "attention", "mamba"],
        },
    ),
    "lightning": (
        "MiniMax",
        {
            "head_dim": 32,
            "intermediate_size": 128,
            "num_local_experts": 8,
            "block_size": 32,
            "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "index": (
        "DeepseekV32",
        {
            "intermediate_size": 128,
            "moe_intermediate_size": 128,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "q_lora_rank": 64,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 32,
            "index_topk": 32,
            "index_n_heads": 4,
            "index_head_dim": 32,
        },
    ),
    "encoder": (
        "SwitchTransformers",
        {
            "d_model": 128,
            "d_kv": 32,
            "d_ff": 128,
            "num_layers": 4,
            "num_heads": 4,
            "num_experts": 8,
            "expert_capacity": 4096,  # nobody is left out, or a text would hang on its company
            "decoder_start_token_id": 0,
        },
    ),
}


def compile_small(folder: Path, states: str = "keys") -> Path:
    """A small random decoder with such states, weights large enough that its texts do not repeat one token. With them
    rounding grows: Qwen3-Next in eager PyTorch is 1e-3 standard deviations from float64, so more is allowed here."""
    import transformers

    torch.manual_seed(0)
    name, rest = STATES[states]
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **rest})
    head = "ForConditionalGeneration" if config.is_encoder_decoder else "ForCausalLM"
    model = getattr(transformers, f"{name}{head}")(config).eval()
    moec.compile(model, target="onnxruntime:cpu,threads=1", tolerance=5e-3, out=folder)
    return folder
