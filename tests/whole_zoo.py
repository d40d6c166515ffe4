"""A small config of every mixture-of-experts text model that transformers can build, and of dense decoders with other
states than keys and values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tests import encoder_decoders, zoo, zoo_parts

LAYERS, CONTEXT = 2, 64

# sizes by the name that a config gives them; each config takes those that it has
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input"), 96),
    **dict.fromkeys(("hidden_size", "d_model"), 32),
    **dict.fromkeys(("max_position_embeddings", "max_seq_len"), CONTEXT),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "moe_hidden_size"), 24),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_experts_intermediate_size", "share_expert_dim"), 40),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), 40),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "kv_channels"), 8),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_chunk_size"), 5),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("index_head_dim", "indexer_head_dim"), 16),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "mamba_d_head"), 8),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "block_size"), 4),
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "index_topk": 4,
    "index_n_heads": 16,
    "linear_num_key_heads": 2,
    "n_groups": 2,
    "router_hidden_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MLA = {"num_key_value_heads": 4}
_GROUPS = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "routed_scaling_factor": 1.5}
_WINDOW = {"layer_types": ["sliding_attention", "full_attention"]}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_ALL_SPARSE = {"mlp_layer_types": ["sparse"] * LAYERS}
_FIRST_DENSE = {"mlp_layer_types": ["dense", "sparse"]}
_THREE_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
_HALF_OF_THREE_AXES = {"rope_parameters": {**_THREE_AXES["rope_parameters"], "partial_rotary_factor": 0.5}}
_HALF_OF_THREE_AXES["rope_parameters"]["mrope_section"] = [1, 1, 0]
_ERNIE = {
    "moe_intermediate_size": [24, 16],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}

# model type -> (config class, model class, what differs from _SIZES)
_MOE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "afmoe": ("AfmoeConfig", "AfmoeForCausalLM", {**_WINDOW, "num_dense_layers": 1, "mup_enabled": True}),
    "aria_text": ("AriaTextConfig", "AriaTextForCausalLM", {}),
    "axk1": ("AXK1Config", "AXK1ForCausalLM", {**_MLA, **_GROUPS, **_FIRST_DENSE}),
    "axk2": ("AXK2Config", "AXK2ForCausalLM", {**_MLA, **_FIRST_DENSE}),
    "bailing_hybrid": ("BailingHybridConfig", "BailingHybridForCausalLM", {**_MLA, **_GROUPS, **_LINEAR}),
    "beam": ("BeamConfig", "BeamForCausalLM", {**_WINDOW, **_GROUPS, **_FIRST_DENSE}),
    "cohere2_moe": ("Cohere2MoeConfig", "Cohere2MoeForCausalLM", {**_WINDOW, **_FIRST_DENSE}),
    "dbrx": (
        "DbrxConfig",
        "DbrxForCausalLM",
        {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 8, "moe_top_k": 2},
        },
    ),
    "deepseek_v32": ("DeepseekV32Config", "DeepseekV32ForCausalLM", {**_MLA, **_GROUPS}),
    "deepseek_v4": (
        "DeepseekV4Config",
        "DeepseekV4ForCausalLM",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "num_key_value_heads": 1,
            "partial_rotary_factor": 0.5,
            "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
            "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            "hc_mult": 2,
            "hc_sinkhorn_iters": 2,
            "o_groups": 2,
            "o_lora_rank": 8,
        },
    ),
    "doge": ("DogeConfig", "DogeForCausalLM", {"is_moe": True, "num_experts": 16, "keep_window_size": 5}),
    "dots1": ("Dots1Config", "Dots1ForCausalLM", {**_WINDOW, **_GROUPS, "n_routed_experts": 8}),
    "dots3_note": (
        "Dots3NoteTextConfig",
        "Dots3NoteForCausalLM",
        {
            **_MLA,
            **_GROUPS,
            "layer_types": ["indexed_attention", "sliding_attention"],
            "head_dim": 20,
            **{f"swa_{name}": size for name, size in {"num_attention_heads": 2, "num_key_value_heads": 2}.items()},
            **{f"swa_{name}": size for name, size in {"head_dim": 20, "qk_nope_head_dim": 12}.items()},
            **{f"swa_{name}": size for name, size in {"v_head_dim": 10, "kv_lora_rank": 16}.items()},
            "swa_q_lora_rank": 24,
        },
    ),
    "ernie4_5_moe": ("Ernie4_5_MoeConfig", "Ernie4_5_MoeForCausalLM", {"moe_k": 3}),
    "exaone_moe": ("ExaoneMoeConfig", "ExaoneMoeForCausalLM", {**_WINDOW, **_GROUPS}),
    "flex_olmo": ("FlexOlmoConfig", "FlexOlmoForCausalLM", {"num_experts_per_tok": 3}),
    "flint": ("FlintConfig", "FlintForCausalLM", {**_WINDOW, "mlp_only_layers": [0]}),
    "gemma4_text": (
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {**_WINDOW, "enable_moe_block": True, "hidden_size_per_layer_input": 8, "global_head_dim": 16},
    ),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", "Glm4MoeLiteForCausalLM", {**_MLA, **_GROUPS, **_FIRST_DENSE}),
    "glm_moe_dsa": (
        "GlmMoeDsaConfig",
        "GlmMoeDsaForCausalLM",
        {**_MLA, "num_hidden_layers": 3, "indexer_types": ["full", "shared", "full"]},
    ),
    "granitemoe_swa": ("GraniteMoeSWAConfig", "GraniteMoeSWAForCausalLM", {**_WINDOW, "layer_rope_theta": [0, 1e4]}),
    "granitemoehybrid": ("GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM", _LINEAR),
    "granitemoeshared": ("GraniteMoeSharedConfig", "GraniteMoeSharedForCausalLM", {}),
    "hunyuan_v1_moe": ("HunYuanMoEV1Config", "HunYuanMoEV1ForCausalLM", {}),
    "hy_v3": ("HYV3Config", "HYV3ForCausalLM", _FIRST_DENSE),
    "hy_v4": (
        "HYV4Config",
        "HYV4ForCausalLM",
        {**_MLA, **_FIRST_DENSE, "indexer_types": ["full", "shared"], "hc_mult": 2},
    ),
    "inkling_text": (
        "InklingTextConfig",
        "InklingForCausalLM",
        {
            "layer_types": ["hybrid_sliding", "hybrid"],
            "mlp_layer_types": ["dense", "sparse"],
            "d_rel": 4,
            "rel_extent": 8,
            "n_shared_experts": 2,
            "log_scaling_n_floor": 6,
        },
    ),
    "inkling2_text": (
        "Inkling2TextConfig",
        "Inkling2ForCausalLM",
        {
            "layer_types": ["hybrid_sliding", "hybrid"],
            "d_rel": 4,
            "rel_extent": 8,
            "log_scaling_n_floor": 6,
            "n_layers_per_attn_res_block": 1,
        },
    ),
    "jamba": (
        "JambaConfig",
        "JambaForCausalLM",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    ),
    "jetmoe": ("JetMoeConfig", "JetMoeForCausalLM", {"num_key_value_heads": 4}),
    "kimi_linear": ("KimiLinearConfig", "KimiLinearForCausalLM", {**_MLA, **_LINEAR, "q_lora_rank": None}),
    "kolibri1": ("Kolibri1Config", "Kolibri1ForCausalLM", _WINDOW),
    "laguna": (
        "LagunaConfig",
        "LagunaForCausalLM",
        {**_WINDOW, "num_attention_heads_per_layer": [2, 4], "moe_router_logit_softcapping": 2.0},
    ),
    "lfm2_moe": (
        "Lfm2MoeConfig",
        "Lfm2MoeForCausalLM",
        {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
    "longcat_flash": (
        "LongcatFlashConfig",
        "LongcatFlashForCausalLM",
        {**_MLA, "num_layers": 1, "zero_expert_num": 3, "moe_topk": 3, "qk_head_dim": 20},
    ),
    "mellum": ("MellumConfig", "MellumForCausalLM", {**_WINDOW, **_ALL_SPARSE}),
    "mimo_v2_flash": ("MiMoV2FlashConfig", "MiMoV2FlashForCausalLM", {**_WINDOW, **_GROUPS, **_FIRST_DENSE}),
    "minimax": ("MiniMaxConfig", "MiniMaxForCausalLM", _LINEAR),
    "minimax_m2": ("MiniMaxM2Config", "MiniMaxM2ForCausalLM", {}),
    "minimax_m3_vl_text": (
        "MiniMaxM3VLTextConfig",
        "MiniMaxM3VLForCausalLM",
        {
            **_FIRST_DENSE,
            "layer_types": ["full_attention", "minimax_m3_sparse"],
            "rotary_dim": 4,
            "index_n_heads": 2,  # as many as there are heads of keys
            "index_block_size": 4,
            "index_topk_blocks": 2,
        },
    ),
    "mistral4": ("Mistral4Config", "Mistral4ForCausalLM", {**_MLA, **_GROUPS}),
    "nemotron_h": (
        "NemotronHConfig",
        "NemotronHForCausalLM",
        {"layer_types": ["linear_attention", "moe", "full_attention", "mlp"], "num_hidden_layers": 4},
    ),
    "openai_privacy_filter": ("OpenAIPrivacyFilterConfig", "OpenAIPrivacyFilterForTokenClassification", {}),
    "phimoe": ("PhimoeConfig", "PhimoeForCausalLM", {}),
    "qwen3_5_moe_text": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM", _LINEAR),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM", _LINEAR),
    "qwen4_exp_text": (
        "Qwen4ExpTextConfig",
        "Qwen4ExpForCausalLM",
        {
            "layer_types": ["linear_attention", "indexed_attention"],
            "hc_count": 2,
            "hc_lowrank": 8,
            "indexer_n_heads": 8,
            "indexer_kv_heads": 1,
            "indexer_budget": 4,
            "indexer_compress_ratio": 2,
        },
    ),
    "solar_open": ("SolarOpenConfig", "SolarOpenForCausalLM", _GROUPS),
    "zaya": ("ZayaConfig", "ZayaForCausalLM", {"num_experts_per_tok": 1, "num_experts": 3}),
}

# models of images, compiled for text alone: as above, what differs is of the text's config
_WITH_IMAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deepseek_ocr2": ("DeepseekOcr2Config", "DeepseekOcr2ForConditionalGeneration", _FIRST_DENSE),
    "ernie4_5_vl_moe": ("Ernie4_5_VLMoeConfig", "Ernie4_5_VLMoeForConditionalGeneration", _ERNIE),
    "glm4v_moe": ("Glm4vMoeConfig", "Glm4vMoeForConditionalGeneration", {**_GROUPS, **_HALF_OF_THREE_AXES}),
    "glm5_next": (
        "Glm5NextConfig",
        "Glm5NextForConditionalGeneration",
        {
            **_MLA,
            **_FIRST_DENSE,
            "layer_types": ["linear_attention", "indexed_attention"],
            "hc_mult": 2,
            "index_kpool": 2,
            "qk_rope_head_dim": 0,
        },
    ),
    "kimi_k25": ("Kimi_K25Config", "Kimi_K25ForConditionalGeneration", {**_MLA, **_GROUPS}),
    "mistral_large4": (
        "MistralLarge4Config",
        "MistralLarge4ForConditionalGeneration",
        {**_MLA, "indexer_types": ["full", "shared"], "no_rope_layers": [1, 0]},
    ),
    "muse_spark": ("MuseSparkConfig", "MuseSparkForConditionalGeneration", {**_WINDOW, "output_multiplier": 4.0}),
    "qwen3_omni_moe_thinker": (
        "Qwen3OmniMoeThinkerConfig",
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        _THREE_AXES,
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoeConfig",
        "Qwen3VLMoeForConditionalGeneration",
        _THREE_AXES,
    ),
    "step3p7": (
        "Step3p7Config",
        "Step3p7ForConditionalGeneration",
        {**_WINDOW, **_ALL_SPARSE, "swiglu_limits": [0.5, 0.0], "swiglu_limits_shared": [0.0, 0.5]},
    ),
    "unlimited_ocr": ("UnlimitedOcrConfig", "UnlimitedOcrForConditionalGeneration", {**_MLA, **_FIRST_DENSE}),
}

# dense decoders with other states than keys and values
_HYBRID: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bamba": ("BambaConfig", "BambaForCausalLM", {"attn_layer_indices": [1]}),
    "falcon_h1": ("FalconH1Config", "FalconH1ForCausalLM", {"mamba_d_ssm": 64}),
    "falcon_mamba": ("FalconMambaConfig", "FalconMambaForCausalLM", {"state_size": 8, "time_step_rank": 4}),
    "lfm2": ("Lfm2Config", "Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    "lfm3": ("Lfm3Config", "Lfm3ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
    "mamba": ("MambaConfig", "MambaForCausalLM", {"state_size": 8, "time_step_rank": 4}),
    "mamba2": ("Mamba2Config", "Mamba2ForCausalLM", {"state_size": 8, "num_heads": 8, "expand": 2}),
    "olmo_hybrid": ("OlmoHybridConfig", "OlmoHybridForCausalLM", _LINEAR),
    "qwen3_5_text": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", _LINEAR),
    "recurrent_gemma": ("RecurrentGemmaConfig", "RecurrentGemmaForCausalLM", {"num_hidden_layers": 3}),
    "zamba": (
        "ZambaConfig",
        "ZambaForCausalLM",
        {"layers_block_type": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4},
    ),
    "zamba2": (
        "Zamba2Config",
        "Zamba2ForCausalLM",
        {"layers_block_type": ["mamba", "hybrid"], "num_key_value_heads": 4},
    ),
}


# sizes of what sees and hears, which the engines are without
_SEEING: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "out_hidden_size", "projection_hidden_size", "output_channels", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "mlp_dim", "projection_intermediate_size", "encoder_ffn_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "depth", "encoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("pos_emb_height", "pos_emb_width"), 4),
    "image_size": 28,
    "patch_size": 14,
    "downsample_channels": [16, 32],
    "num_position_embeddings": 16,
    "patch_sizes": [16],
    "hidden_sizes": [32],
    "depths": [1],
}
# parts that may be of any kind
_KINDS = {"kimi_k25": {"text_config": "DeepseekV3Config"}, "mistral_large4": {"vision_config": "PixtralVisionConfig"}}


def names(hybrid: bool = False) -> list[str]:
    """The mixture-of-experts models, or the dense ones with other states, in alphabetical order."""
    return sorted(_HYBRID) if hybrid else sorted({*_MOE, *_WITH_IMAGES, *zoo.architectures()})


def architecture(name: str) -> str:
    """The class of a model, as its config names it; `name` may be one of the dense models that tests upcycle, or one of
    `tests/zoo_parts.py`."""
    known = zoo.architectures() | zoo.architectures(dense=True) | encoder_decoders.ARCHITECTURES | zoo_parts.OWN_CODE
    return known[name] if name in known else {**_MOE, **_HYBRID, **_WITH_IMAGES}[name][1]


def config(name: str) -> Any:
    """The tiny `PretrainedConfig` of a model of this file."""
    import transformers

    config_class, model_class, changes = {**_MOE, **_HYBRID, **_WITH_IMAGES}[name]
    kind = getattr(transformers, config_class)
    made = (
        kind(**_parts(kind, changes, _KINDS.get(name, {})))
        if name in _WITH_IMAGES
        else kind(**_sized(kind, _SIZES, changes))
    )
    if name.startswith("qwen3_omni"):  # its config has it, and the class does not say so
        made.vision_start_token_id = 5
    made.architectures = [model_class]
    return made


def _sized(kind: Any, sizes: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The sizes that a config has an entry for, and what differs."""
    own = {field.name for field in dataclasses.fields(kind)}
    return {**{key: value for key, value in sizes.items() if key in own}, **changes}


def _parts(kind: Any, changes: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    """The configs inside of one: the text's as models of text have it, the others as small as they go."""
    import transformers

    made = {"projector_hidden_size": 32} if hasattr(kind, "projector_hidden_size") else {}
    for part, of in kind.sub_configs.items():
        sizes, more = (_SIZES, changes) if part == "text_config" else (_SEEING, {})
        named = getattr(transformers, kinds[part]) if part in kinds else of
        made[part] = named(**(_parts(of, {}, {}) if getattr(of, "sub_configs", None) else _sized(named, sizes, more)))
    return made


# The random numbers with which each expert of a model gets tokens, where the usual ones leave some without.
SEEDS = {"zaya": 2}


def build(name: str, seed: int | None = None) -> Any:
    """The random model in memory, in eval mode and float32."""
    import torch
    import transformers

    seed = SEEDS.get(name, 0) if seed is None else seed
    if name in zoo.architectures() | zoo.architectures(dense=True):
        return zoo.build(name, seed)
    made = config(name)
    model = getattr(transformers, made.architectures[0])(made)
    zoo.randomize(model, seed)
    for name, buffer in model.named_buffers():
        if name.endswith("balancing_biases"):  # Zaya's; from_pretrained sets the last one, whatever the files hold
            buffer[-1] = -1.0
        if name.endswith("tid2eid"):  # DeepSeek-V4's table of the experts that a token gets, zeros until it is loaded
            buffer.copy_((torch.arange(len(buffer))[:, None] + torch.arange(buffer.shape[1])) % 8)
    for module in model.modules():
        if hasattr(module, "decay_factors"):  # MiniMax's decays, which all say the same of one rate
            module.slope_rate = module.get_slope_rate()
            module.query_decay, module.key_decay, module.diagonal_decay = module.decay_factors(module.slope_rate)
    return model.eval()


def save(name: str, folder: Path, seed: int | None = None) -> str:
    """Write the random model as a Hugging Face folder; returns its path."""
    if name in zoo_parts.OWN_CODE:
        return zoo_parts.save_own_code(folder)
    if name in encoder_decoders.ARCHITECTURES:
        return str(encoder_decoders.save(name, folder))
    build(name, seed).save_pretrained(folder)
    return str(folder)
