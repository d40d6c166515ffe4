"""More configs of published models by name, from their published figures, with the parameters that their makers' files
hold where those are known."""

from __future__ import annotations

from typing import Any

from tests.planning import configs as c


def _vl(kind: str, cls: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model_type": kind, "architectures": [cls], "text_config": text, "vision_config": vision, **more}


def _qwen2(hidden: int, wide: int, layers: int, heads: int, kv: int, tied: bool, vocabulary: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers, "vocab_size": vocabulary}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": kv, "tie_word_embeddings": tied}
    return c.QWEN2_5_72B | sizes | heads_of


LLAMA_4: dict[str, Any] = _vl(
    "llama4",
    "Llama4ForConditionalGeneration",
    {
        "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 202048, "num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
        "attention_chunk_size": 8192,
    },
    {
        "model_type": "llama4_vision_model", "hidden_size": 1408, "intermediate_size": 5632, "num_hidden_layers": 34,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "vision_output_dim": 4096,
        "projector_input_dim": 4096, "projector_output_dim": 4096,
    },
)  # fmt: skip
MAVERICK: dict[str, Any] = LLAMA_4 | {
    "text_config": LLAMA_4["text_config"] | {"num_local_experts": 128, "interleave_moe_layer_step": 2}
}
GEMMA_4: dict[str, Any] = _vl(
    "gemma4",
    "Gemma4ForConditionalGeneration",
    {
        "model_type": "gemma4_text", "hidden_size": 2816, "intermediate_size": 2112, "moe_intermediate_size": 704,
        "num_hidden_layers": 30, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
        "global_head_dim": 512, "num_global_key_value_heads": 2, "attention_k_eq_v": True, "enable_moe_block": True,
        "num_experts": 128, "top_k_experts": 8, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
        "sliding_window": 1024, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
        "vocab_size": 262144, "vocab_size_per_layer_input": 262144, "use_double_wide_mlp": False,
    },
    {
        "model_type": "gemma4_vision", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72, "global_head_dim": 72,
    },
    audio_config=None,
)  # fmt: skip
QWEN3_5: dict[str, Any] = _vl(
    "qwen3_5_moe",
    "Qwen3_5MoeForConditionalGeneration",
    {
        "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "num_hidden_layers": 40, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 248320, "num_experts": 256, "num_experts_per_tok": 8,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "mtp_num_hidden_layers": 1,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
    },
    {
        "model_type": "qwen3_5_moe", "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
        "num_position_embeddings": 2304, "out_hidden_size": 2048, "patch_size": 16,
    },
)  # fmt: skip
KIMI_K2: dict[str, Any] = c.DEEPSEEK_V3 | {
    "model_type": "kimi_k2", "n_routed_experts": 384, "num_attention_heads": 64, "num_key_value_heads": 64,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "vocab_size": 163840, "num_nextn_predict_layers": 0,
    "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
}  # fmt: skip
GLM_5: dict[str, Any] = c.DEEPSEEK_V3 | {
    "model_type": "glm_moe_dsa", "architectures": ["GlmMoeDsaForCausalLM"], "hidden_size": 6144,
    "intermediate_size": 12288, "num_hidden_layers": 78, "num_attention_heads": 64, "num_key_value_heads": 64,
    "vocab_size": 154880, "q_lora_rank": 2048, "qk_nope_head_dim": 192, "v_head_dim": 256, "index_head_dim": 128,
    "index_n_heads": 32, "n_group": 1, "topk_group": 1,
}  # fmt: skip
DEEPSEEK_V4: dict[str, Any] = {
    "model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"], "hidden_size": 4096, "head_dim": 512,
    "moe_intermediate_size": 2048, "num_hidden_layers": 43, "num_attention_heads": 64, "num_key_value_heads": 1,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 6, "vocab_size": 129280, "hc_mult": 4,
    "index_head_dim": 128, "index_n_heads": 64, "num_hash_layers": 3, "o_groups": 8, "o_lora_rank": 1024,
    "q_lora_rank": 1024, "qk_rope_head_dim": 64, "sliding_window": 128, "tie_word_embeddings": False,
    "compress_ratios": [0, 0, *([4, 128] * 20), 4],
}  # fmt: skip
NEMOTRON_H: dict[str, Any] = {
    "model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"], "hidden_size": 2688,
    "intermediate_size": 1856, "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", "num_hidden_layers": 52,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "mamba_num_heads": 64, "mamba_head_dim": 64,
    "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4, "expand": 2, "n_routed_experts": 128, "n_shared_experts": 1,
    "num_experts_per_tok": 6, "vocab_size": 131072, "mlp_hidden_act": "relu2", "tie_word_embeddings": False,
}  # fmt: skip
_GLM_AIR: dict[str, Any] = {
    "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "hidden_size": 4096, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8,
    "head_dim": 128, "attention_bias": True, "use_qk_norm": False, "vocab_size": 151552, "n_routed_experts": 128,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 1, "tie_word_embeddings": False,
    "num_nextn_predict_layers": 1,
}  # fmt: skip
_PHI: dict[str, Any] = {
    "model_type": "phimoe", "architectures": ["PhimoeForCausalLM"], "hidden_size": 4096, "intermediate_size": 6400,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32064,
    "num_local_experts": 16, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True,
    "tie_word_embeddings": False,
}  # fmt: skip
_DBRX: dict[str, Any] = {
    "model_type": "dbrx", "architectures": ["DbrxForCausalLM"], "d_model": 6144, "n_layers": 40, "n_heads": 48,
    "vocab_size": 100352, "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000, "model_type": ""},
    "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4, "model_type": ""},
    "tie_word_embeddings": False,
}  # fmt: skip
_JAMBA: dict[str, Any] = {
    "model_type": "jamba", "architectures": ["JambaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 65536,
    "num_experts": 16, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
    "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2,
    "mamba_dt_rank": 256, "tie_word_embeddings": False,
}  # fmt: skip
_GRANITE: dict[str, Any] = {
    "model_type": "granitemoe", "architectures": ["GraniteMoeForCausalLM"], "hidden_size": 1536,
    "intermediate_size": 512, "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8,
    "vocab_size": 49155, "num_local_experts": 40, "num_experts_per_tok": 8, "tie_word_embeddings": True,
}  # fmt: skip
_JETMOE: dict[str, Any] = {
    "model_type": "jetmoe", "architectures": ["JetMoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 24, "num_key_value_heads": 16, "kv_channels": 128, "vocab_size": 32000, "num_local_experts": 8,
    "num_experts_per_tok": 2, "tie_word_embeddings": True,
}  # fmt: skip
_MINIMAX: dict[str, Any] = {
    "model_type": "minimax_m2", "architectures": ["MiniMaxM2ForCausalLM"], "hidden_size": 3072,
    "intermediate_size": 1536, "num_hidden_layers": 62, "num_attention_heads": 48, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 200064, "num_local_experts": 256, "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}  # fmt: skip

# name -> config, and the parameters that are published, 0 where only rounded ones are
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Mixtral-8x7B": (c.MIXTRAL, 46_702_792_704),
    "Qwen3-30B-A3B": (c.QWEN3_30B, 30_532_122_624),
    "Qwen3-Next-80B": (c.QWEN3_NEXT, 0),
    "OLMoE": (c.OLMOE, 6_919_161_856),
    "Qwen1.5-MoE": (c.QWEN1_5, 14_315_784_192),
    "gpt-oss-20b": (c.GPT_OSS | {"num_hidden_layers": 24, "num_local_experts": 32}, 20_914_757_184),
    "gpt-oss-120b": (c.GPT_OSS, 116_829_156_672),
    "Llama-3.2-1B": (c.LLAMA_1B, 1_235_814_400),
    "Llama-3.1-8B": (
        c.LLAMA_70B | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                       "num_attention_heads": 32}, 8_030_261_248,
    ),
    "Qwen2.5-0.5B": (_qwen2(896, 4864, 24, 14, 2, True, 151936), 494_032_768),
    "Qwen2.5-7B": (_qwen2(3584, 18944, 28, 28, 4, False, 152064), 7_615_616_512),
    "GLM-4.5-Air": (_GLM_AIR, 0),
    "MiniMax-M2": (_MINIMAX, 0),
    "Nemotron-3-Nano": (NEMOTRON_H, 0),
    "Granite-3.0-3B-A800M": (_GRANITE, 3_298_793_472),
    "Jamba": (_JAMBA, 51_570_323_328),
    "Phi-3.5-MoE": (_PHI, 41_873_153_344),
    "DBRX": (_DBRX, 131_596_523_520),
    "JetMoE": (_JETMOE, 8_522_237_952),
    "Gemma-4-26B-A4B": (GEMMA_4, 25_805_933_872),
    "DeepSeek-V3": (c.DEEPSEEK_V3, 671_026_404_352),
    "DeepSeek-V4-Flash": (DEEPSEEK_V4, 0),
}  # fmt: skip
# the same, of kinds that are in the list above
LARGER: dict[str, tuple[dict[str, Any], int]] = {
    "Mixtral-8x22B": (c.MIXTRAL_22B, 140_630_071_296),
    "Qwen3-235B-A22B": (c.QWEN3_235B, 235_093_634_560),
    "Qwen3.5-35B-A3B": (QWEN3_5, 0),
    "Llama-4-Scout": (LLAMA_4, 0),
    "Llama-4-Maverick": (MAVERICK, 0),
    "GLM-5": (GLM_5, 743_911_199_232),
    "Llama-3.2-3B": (
        c.LLAMA_1B | {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128},
        3_212_749_824,
    ),
    "Llama-3.1-70B": (c.LLAMA_70B, 70_553_706_496),
    "Qwen2.5-1.5B": (_qwen2(1536, 8960, 28, 12, 2, True, 151936), 1_543_714_304),
    "Qwen2.5-3B": (_qwen2(2048, 11008, 36, 16, 2, True, 151936), 3_085_938_688),
    "Qwen2.5-14B": (_qwen2(5120, 13824, 48, 40, 8, False, 152064), 14_770_033_664),
    "Qwen2.5-32B": (_qwen2(5120, 27648, 64, 40, 8, False, 152064), 32_763_876_352),
    "Qwen2.5-72B": (c.QWEN2_5_72B, 72_706_203_648),
}
