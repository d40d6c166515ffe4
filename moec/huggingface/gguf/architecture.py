"""The architectures of transformers that a GGUF file holds exactly, as llama.cpp computes them, and what their settings
are called there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ARCHITECTURES = {"llama": "llama", "mixtral": "llama", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
_COUNTS = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts"}
_WIDTHS = {"mixtral": "intermediate_size", "qwen3_moe": "moe_intermediate_size"}
ROPE_FACTORS = "rope_freqs.weight"


def why_not(config: Any) -> str:
    """What of a model a GGUF file, or llama.cpp, cannot say; empty when it says everything."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        return f"it is a {kind}; moec writes {', '.join(ARCHITECTURES)}"
    if getattr(config, "hidden_act", "silu") not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}, and llama.cpp computes SiLU there"
    biased = next((b for b in ("attention_bias", "mlp_bias") if getattr(config, b, False)), "")
    if biased:
        return f"it has biases ({biased})"
    slides = any(t == "sliding_attention" for t in getattr(config, "layer_types", None) or ())
    if slides or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)):
        return "its attention has a sliding window"
    if kind == "qwen3_moe" and not config.norm_topk_prob:
        return "its router leaves the scores as they are (norm_topk_prob=False), and llama.cpp divides by their sum"
    if kind == "qwen3_moe" and (config.mlp_only_layers or config.decoder_sparse_step != 1):
        return "some of its layers are dense, and llama.cpp gives every layer experts"
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ("default", "llama3", "linear"):
        return f"its positions are scaled by {rope['rope_type']!r}; moec writes default, linear and llama3"
    turned = rope.get("partial_rotary_factor", 1.0)
    return "" if turned == 1.0 else f"it turns only {turned} of a head"


def head_width(config: Any) -> int:
    """Numbers in a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def add_settings(writer: Any, config: Any) -> None:
    """Write the model's sizes and rules through a `gguf.GGUFWriter`."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_rope_dimension_count(head_width(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters.get("rope_type") == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_vocab_size(config.vocab_size)
    if config.model_type in _COUNTS:
        writer.add_expert_count(getattr(config, _COUNTS[config.model_type]))
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, _WIDTHS[config.model_type]))


def rope_factors(config: Any) -> Tensor | None:
    """What llama.cpp divides each frequency of a head by, float32 `[head / 2]`; None where frequencies stay."""
    if config.rope_parameters.get("rope_type") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    exponents = torch.arange(0, head_width(config), 2, dtype=torch.int64).float() / head_width(config)
    plain = 1.0 / config.rope_parameters["rope_theta"] ** exponents
    return (plain / scaled).float()


def config_from(fields: Mapping[str, Any], names: set[str]) -> dict[str, Any] | str:
    """config.json's entries from a GGUF file's fields, or why the model is none that moec reads, as text.

    Args:
        fields: by GGUF's names. names: of the file's tensors.
    """
    given = str(fields.get("general.architecture"))
    own = {k.removeprefix(f"{given}."): v for k, v in fields.items() if k.startswith(f"{given}.")}
    kind = {"llama": "mixtral" if own.get("expert_count") else "llama", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}.get(
        given
    )
    if kind is None:
        return f"its architecture is {given!r}; moec reads {', '.join(sorted(set(ARCHITECTURES.values())))}"
    scaling = str(own.get("rope.scaling.type", "none"))
    if scaling not in ("none", "linear"):
        return f"its positions are scaled by {scaling!r}"
    if ROPE_FACTORS in names:
        return f"its frequencies have factors ({ROPE_FACTORS}), which config.json has no entry for"
    width = own.get("attention.key_length") or own["embedding_length"] // own["attention.head_count"]
    if own.get("attention.value_length", width) != width or own.get("rope.dimension_count", width) != width:
        return "its values, or the part of a head that is turned, are of another width than its keys"
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(own.get("rope.freq_base", 10000.0))}
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": float(own["rope.scaling.factor"])}
    entries = {
        "model_type": kind,
        "num_hidden_layers": own["block_count"],
        "max_position_embeddings": own["context_length"],
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own.get("attention.head_count_kv", own["attention.head_count"]),
        "head_dim": width,
        "rms_norm_eps": float(own["attention.layer_norm_rms_epsilon"]),
        "rope_parameters": rope,
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in names,
    }
    if kind in _COUNTS:
        entries |= {_COUNTS[kind]: own["expert_count"], "num_experts_per_tok": own["expert_used_count"]}
        entries[_WIDTHS[kind]] = own.get("expert_feed_forward_length", own["feed_forward_length"])
    if kind == "qwen3_moe":
        entries |= {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1}
    tokens = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    for theirs, ours in tokens.items():
        entries[ours] = fields.get(f"tokenizer.ggml.{theirs}_token_id")
    return entries
