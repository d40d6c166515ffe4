"""A Hugging Face Qwen3 or Qwen3-MoE as a GGUF file in float32, so that llama.cpp runs the very same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path) -> None:
    """Write `path`; the file has no tokenizer. Raises RuntimeError for a model of another kind."""
    from gguf import GGUFWriter
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    if config.model_type not in ("qwen3", "qwen3_moe"):
        raise RuntimeError(f"gguf_of_folder.py writes no {config.model_type}")
    moe = hasattr(config, "num_experts")
    writer = GGUFWriter(str(path), "qwen3moe" if moe else "qwen3")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    if moe:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    for name, tensor in tensors(model.state_dict()).items():
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize_gguf(path: Path, out: Path) -> None:
    """Write another file with llama.cpp's own `q4_0`: groups of 32 with a scale in 16 bits; it gives a head that is
    tied more."""
    import ctypes

    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    if llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(params)):
        raise RuntimeError("llama.cpp could not quantize the file")


def tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GGUF's names; tied embeddings once, gate and up apart."""
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    for name, tensor in state.items():
        if not name.startswith("model.layers."):
            continue
        number, rest = name.removeprefix("model.layers.").split(".", 1)
        if rest == "mlp.experts.gate_up_proj":
            found[f"blk.{number}.ffn_gate_exps.weight"], found[f"blk.{number}.ffn_up_exps.weight"] = tensor.chunk(2, 1)
        elif rest == "mlp.experts.down_proj":
            found[f"blk.{number}.ffn_down_exps.weight"] = tensor
        else:
            found[f"blk.{number}.{_LAYER[rest.removesuffix('.weight')]}.weight"] = tensor
    return found
