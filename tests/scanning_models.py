"""Tiny random decoders with state space layers and lightning attention, for the tests of their states."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCAB = 96
_TEXT = {"vocab_size": VOCAB, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_HYBRID = {**_TEXT, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
           "max_position_embeddings": 256, "intermediate_size": 48}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
_MAMBA = {"mamba_d_state": 8, "mamba_dt_rank": 4}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_chunk_size": 8}
_SHARED = {"num_hidden_layers": 4, "num_key_value_heads": 4,
           "layers_block_type": ["linear_attention", "hybrid"] * 2}  # fmt: skip

# name -> (what its classes are called, its config)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "jamba": ("Jamba", {**_HYBRID, **_MAMBA, "num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2,
                        "expert_layer_offset": 1, "attn_layer_period": 2, "attn_layer_offset": 1}),
    "mamba": ("Mamba", {**_TEXT, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4}),
    "falcon_mamba": ("FalconMamba", {**_TEXT, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4}),
    "zamba": ("Zamba", {**_HYBRID, **_SHARED, **_MAMBA, "n_mamba_heads": 2}),
    "granite": ("GraniteMoeHybrid", {**_HYBRID, **_EXPERTS, **_MAMBA2, "shared_intermediate_size": 24,
                                     "layer_types": ["mamba", "attention"]}),
    "nemotron": ("NemotronH", {**_HYBRID, "num_hidden_layers": 4, "head_dim": 8, "n_groups": 2, "ssm_state_size": 16,
                               "layers_block_type": ["mamba", "moe", "attention", "mlp"], "mamba_num_heads": 8,
                               "mamba_head_dim": 8, "chunk_size": 8, "moe_intermediate_size": 24,
                               "moe_shared_expert_intermediate_size": 24, "n_routed_experts": 4,
                               "num_experts_per_tok": 2}),
    "bamba": ("Bamba", {**_HYBRID, **_MAMBA2, "attn_layer_indices": [1]}),
    "falcon_h1": ("FalconH1", {**_HYBRID, **_MAMBA2, "head_dim": 8, "mamba_d_ssm": 64}),
    "mamba2": ("Mamba2", {**_TEXT, "num_hidden_layers": 2, "state_size": 16, "num_heads": 8, "head_dim": 8,
                          "n_groups": 2, "chunk_size": 8}),
    "zamba2": ("Zamba2", {**_HYBRID, **_SHARED, "mamba_d_state": 16, "mamba_ngroups": 2, "n_mamba_heads": 8,
                          "chunk_size": 8, "num_mem_blocks": 1, "use_mem_rope": True}),
    "minimax": ("MiniMax", {**_HYBRID, **_EXPERTS, "num_hidden_layers": 3, "head_dim": 8, "block_size": 8,
                            "layer_types": ["full_attention", "linear_attention", "linear_attention"]}),
}  # fmt: skip
MAMBA = ("jamba", "mamba", "falcon_mamba", "zamba")
MAMBA2 = ("granite", "nemotron", "bamba", "falcon_h1", "mamba2", "zamba2")


def scanning_model(name: str, **changed: Any) -> Any:
    """A model of `MODELS` in eval mode, its parameters drawn so that states matter and decay at several rates."""
    kind, config = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**config | changed))
    with torch.no_grad():
        for path, p in model.named_parameters():
            rates = any(part in path for part in ("A_log", "dt_bias", "dt_proj.bias", "dt_proj_bias", ".D"))
            spread = 0.3 if rates or "expert" in path or "router" in path else 0.15
            p.copy_(torch.randn(p.shape) * spread + (p.dim() == 1 and "norm" in path.lower()))
    return model.eval()


def drawn_ids(batch: int, length: int) -> torch.Tensor:
    """Tokens `[batch, length]`, none of them padding or an end."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))
