"""A Hugging Face Qwen3, Qwen3-MoE or Qwen3-Next as a GGUF file in float32, so that llama.cpp runs the very same
weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.huggingface.gguf.architecture import add_sizes

ARCHITECTURES = {"qwen3": "qwen3", "qwen3_moe": "qwen3moe", "qwen3_next": "qwen3next"}
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
_NEXT_LAYER = {
    **_LAYER,
    "post_attention_layernorm": "post_attention_norm",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}


def write_gguf(folder: Path, path: Path) -> None:
    """Write `path`; the file has no tokenizer. Raises RuntimeError for a model that llama.cpp or this file lacks."""
    from gguf import GGUFWriter
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    if problem := why_not(config):
        raise RuntimeError(f"gguf_of_folder.py writes no {problem}")
    writer = GGUFWriter(str(path), ARCHITECTURES[config.model_type])
    add_sizes(writer, config)
    writer.add_tokenizer_model("none")
    if hasattr(config, "num_experts"):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type == "qwen3_next":
        _add_delta_net(writer, config)
    for name, tensor in tensors(model.state_dict(), config).items():
        writer.add_tensor(name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def why_not(config: Any) -> str:
    """What of a model the file cannot say; empty when it says everything. llama.cpp has heads of one size in a gated
    delta net, and always divides the chosen experts' weights by their sum."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        return str(kind)
    if not getattr(config, "norm_topk_prob", True):
        return f"{kind} with norm_topk_prob=False"
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        return f"{kind} with dense layers among its mixtures"
    if kind != "qwen3_next":
        return ""
    if config.linear_key_head_dim != config.linear_value_head_dim:
        return f"{kind} with keys of {config.linear_key_head_dim} and values of {config.linear_value_head_dim}"
    return "" if _interval(config) else f"{kind} with layers {config.layer_types}"


def _interval(config: Any) -> int:
    """Every how many layers one of attention comes; 0 where they come otherwise."""
    types = config.layer_types
    every = types.index("full_attention") + 1 if "full_attention" in types else len(types) + 1
    wanted = ["linear_attention" if (n + 1) % every else "full_attention" for n in range(len(types))]
    return every if types == wanted else 0


def _add_delta_net(writer: Any, config: Any) -> None:
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_full_attention_interval(_interval(config))
    writer.add_rope_dimension_count(int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def quantize_gguf(path: Path, out: Path) -> None:
    """Write another file with llama.cpp's own `q4_0`: groups of 32 with a scale in 16 bits; it gives a head that is
    tied more."""
    import ctypes

    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    if llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(params)):
        raise RuntimeError("llama.cpp could not quantize the file")


def tensors(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """GGUF's names; tied embeddings once, gate and up apart."""
    shift = 1 if config.model_type == "qwen3_next" else 0  # its norms are stored as what is added to 1
    found = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"] + shift,
    }
    if not config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    for name, tensor in state.items():
        if not name.startswith("model.layers."):
            continue
        number, rest = name.removeprefix("model.layers.").split(".", 1)
        layer = _of_next(rest, tensor, config) if shift else _of_layer(rest, tensor, _LAYER)
        found.update({f"blk.{number}.{theirs}": values for theirs, values in layer.items()})
    return found


def _of_layer(name: str, tensor: Tensor, names: dict[str, str]) -> dict[str, Tensor]:
    if name == "mlp.experts.gate_up_proj":
        gate, up = tensor.chunk(2, 1)
        return {"ffn_gate_exps.weight": gate, "ffn_up_exps.weight": up}
    if name == "mlp.experts.down_proj":
        return {"ffn_down_exps.weight": tensor}
    return {f"{names[name.removesuffix('.weight')]}.weight": tensor}


def _of_next(name: str, tensor: Tensor, config: Any) -> dict[str, Tensor]:
    """A tensor of Qwen3-Next: decays without their logarithm, and the rows of queries, keys, values and gates, which
    the checkpoint has key head by key head, each in one piece."""
    if name == "linear_attn.A_log":
        return {"ssm_a": -tensor.exp()}
    if name == "linear_attn.dt_bias":
        return {"ssm_dt.bias": tensor}
    if name == "linear_attn.in_proj_qkvz.weight":
        keys, ratio = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
        sizes = [config.linear_key_head_dim] * 2 + [ratio * config.linear_value_head_dim] * 2
        *qkv, z = (rows.flatten(0, 1) for rows in tensor.unflatten(0, (keys, sum(sizes))).split(sizes, 1))
        return {"attn_qkv.weight": torch.cat(qkv), "attn_gate.weight": z}
    if name in ("linear_attn.conv1d.weight", "mlp.shared_expert_gate.weight"):
        tensor = tensor.squeeze(1 if "conv1d" in name else 0)
    elif name.endswith("norm.weight") and name != "linear_attn.norm.weight":
        tensor = tensor + 1
    return _of_layer(name, tensor, _NEXT_LAYER)
