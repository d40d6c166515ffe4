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
# of every Llama from 3.1 on; a GGUF file holds only what follows from them
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# what `config_from` reads of an architecture's own settings
_READ = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("expert_count", "expert_used_count", "expert_feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
}
# what llama.cpp reads of no file of these architectures, or computes with only where positions are scaled by YaRN
_INFORMS = {"tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned"}
# what changes the model, and the values by which it stays as it is
_CHANGES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attention.causal", "expert_weights_norm"), (True,)),
    **dict.fromkeys(("pooling_type", "attention.sliding_window", "attention.scale"), (0,)),
    **dict.fromkeys(("attention.clamp_kqv", "attention.max_alibi_bias", "nextn_predict_layers"), (0,)),
    **dict.fromkeys(("expert_shared_count", "leading_dense_block_count", "use_parallel_residual"), (0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping"), (0,)),
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale", "expert_weights_scale"), (0, 1)),
    **dict.fromkeys(("expert_group_count", "expert_group_used_count", "expert_gating_func"), (0, 1)),  # 1 is softmax
    "rope.scaling.attn_factor": (1,),
}


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
    add_sizes(writer, config)
    writer.add_rope_dimension_count(head_width(config))
    if config.rope_parameters.get("rope_type") == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    if config.model_type in _COUNTS:
        writer.add_expert_count(getattr(config, _COUNTS[config.model_type]))
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, _WIDTHS[config.model_type]))


def add_sizes(writer: Any, config: Any) -> None:
    """Write what every decoder of this kind has, whose heads are rotated whole or in part."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def rope_factors(config: Any) -> Tensor | None:
    """What llama.cpp divides each frequency of a head by, float32 `[head / 2]`; None where frequencies stay."""
    if config.rope_parameters.get("rope_type") != "llama3":
        return None
    return _factors(config.rope_parameters, head_width(config))


def _factors(rope: Mapping[str, Any], width: int) -> Tensor:
    """By what `llama3` divides each frequency of a head."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(head_dim=width, rope_parameters=dict(rope))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    return 1.0 / rope["rope_theta"] ** exponents / scaled


def config_from(
    fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: Tensor | None
) -> dict[str, Any] | str:
    """config.json's entries from a GGUF file's fields, or why the model is none that moec reads, as text.

    Args:
        fields: by GGUF's names. shapes: of the file's tensors. factors: its `ROPE_FACTORS`, or None.
    """
    given = str(fields.get("general.architecture"))
    own = {k.removeprefix(f"{given}."): v for k, v in fields.items() if k.startswith(f"{given}.")}
    dense = {theirs: kind for kind, theirs in ARCHITECTURES.items() if kind != "mixtral"}
    if given not in dense:
        return f"its architecture is {given!r}; moec reads {', '.join(dense)}"
    if reason := _unknown(own):
        return f"{given}.{reason}"
    kind = "mixtral" if given == "llama" and own.get("expert_count") else dense[given]
    width = own.get("attention.key_length") or own["embedding_length"] // own["attention.head_count"]
    if own.get("attention.value_length", width) != width or own.get("rope.dimension_count", width) != width:
        return "its values, or the part of a head that is turned, are of another width than its keys"
    entries = {
        "model_type": kind,
        "num_hidden_layers": own["block_count"],
        "max_position_embeddings": own["context_length"],
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own.get("attention.head_count_kv", own["attention.head_count"]),
        "head_dim": width,
        "rms_norm_eps": _shortest(own["attention.layer_norm_rms_epsilon"]),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in shapes,
        "vocab_size": own.get("vocab_size") or shapes["token_embd.weight"][0],
    }
    if kind in _COUNTS:
        entries |= {_COUNTS[kind]: own["expert_count"], "num_experts_per_tok": own["expert_used_count"]}
        entries[_WIDTHS[kind]] = own.get("expert_feed_forward_length", own["feed_forward_length"])
    if kind == "qwen3_moe":
        entries |= {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1}
    for theirs, ours in {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}.items():
        entries[ours] = fields.get(f"tokenizer.ggml.{theirs}_token_id")
    rope = _rope(own, width, factors)
    return rope if isinstance(rope, str) else entries | {"rope_parameters": rope}


def _unknown(own: Mapping[str, Any]) -> str:
    """The first of an architecture's own settings that may change the model in a way that moec does not compute."""
    for name, value in own.items():
        if name in _CHANGES and value not in _CHANGES[name]:
            return f"{name} is {value}"
        if name not in _CHANGES and name not in _READ | _INFORMS:
            return f"{name} is a setting that moec does not know"
    return ""


def _rope(own: Mapping[str, Any], width: int, factors: Tensor | None) -> dict[str, Any] | str:
    """How positions turn a head, as config.json says it; or why it has no entry for that, as text."""
    theta = _shortest(own.get("rope.freq_base", 10000.0))
    scaling = str(own.get("rope.scaling.type", "linear"))  # llama.cpp's default
    if scaling not in ("none", "linear"):
        return f"its positions are scaled by {scaling!r}"
    factor = _shortest(own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0)))
    if scaling == "linear" and factor not in (0.0, 1.0):
        if factors is not None:
            return f"its positions are scaled twice, by {factor} and by {ROPE_FACTORS}"
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if factors is None:
        return {"rope_type": "default", "rope_theta": theta}
    if factors.shape != (width // 2,):
        return f"its frequencies have factors ({ROPE_FACTORS}) of another width than its heads"
    said = {"rope_type": "llama3", "rope_theta": theta, "factor": _shortest(factors.max()), **_LLAMA3}
    same = _factors(said, width)
    if torch.allclose(same, factors, rtol=1e-5, atol=0):
        return said
    return f"its frequencies have factors ({ROPE_FACTORS}) that are not those of Llama 3"


def _shortest(number: Any) -> float:
    """A float32 as the decimal number that was meant."""
    return float(f"{float(number):.7g}")
