"""Tiny random models that see some keys of a text alone: by an index over tokens, over blocks, or over rows that stand
for several tokens each. Every bound (an index's choice, a window, a group) is a few tokens."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tests.zoo import _GROUPED, _MLA, _TEXT, randomize

if TYPE_CHECKING:
    from moec.huggingface.source import HuggingFaceSource

_INDEX: dict[str, Any] = {"index_topk": 6, "index_head_dim": 16, "index_n_heads": 8, "first_k_dense_replace": 1}
# windows of Dots 3 have sizes of their own
_DOTS = {f"swa_{k}": v for k, v in {**_MLA, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 20}.items()}

# name -> (config class, model class, what differs from _TEXT)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deepseek_v32": ("DeepseekV32Config", "DeepseekV32ForCausalLM", {**_MLA, **_GROUPED, **_INDEX, "head_dim": 8}),
    "glm_moe_dsa": (
        "GlmMoeDsaConfig",
        "GlmMoeDsaForCausalLM",
        {**_MLA, **_GROUPED, **_INDEX, "head_dim": 8, "indexer_types": ["full", "shared"]},
    ),
    "axk2": ("AXK2Config", "AXK2ForCausalLM", {**_MLA, **_GROUPED, **_INDEX, "gated_norm_rank": 4}),
    "hy_v4": (
        "HYV4Config",
        "HYV4ForCausalLM",
        {**_MLA, **_GROUPED, **_INDEX, "n_group": 1, "topk_group": 1, "hc_mult": 2, "swiglu_limit": 1.0},
    ),
    "dots3_note": (
        "Dots3NoteTextConfig",
        "Dots3NoteForCausalLM",
        {
            **_MLA,
            **_GROUPED,
            **_INDEX,
            **_DOTS,
            "sliding_window": 5,
            "layer_types": ["indexed_attention", "sliding_attention"],
        },
    ),
    "minimax_m3": (
        "MiniMaxM3VLTextConfig",
        "MiniMaxM3VLForCausalLM",
        {
            "intermediate_size": 24,
            "dense_intermediate_size": 40,
            "shared_intermediate_size": 24,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "head_dim": 16,
            "rotary_dim": 8,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 4,
            "index_topk_blocks": 2,
            "layer_types": ["full_attention", "minimax_m3_sparse"],
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    "deepseek_v4": (
        "DeepseekV4Config",
        "DeepseekV4ForCausalLM",
        {
            "head_dim": 16,
            "num_key_value_heads": 1,
            "q_lora_rank": 24,
            "moe_intermediate_size": 24,
            "intermediate_size": 24,
            "n_routed_experts": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "sliding_window": 5,
            "hc_mult": 2,
            "hc_sinkhorn_iters": 2,
            "index_topk": 2,
            "index_head_dim": 8,
            "index_n_heads": 8,
            "o_groups": 2,
            "o_lora_rank": 8,
            "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
            "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
            "mlp_layer_types": ["hash_moe", "moe"],
        },
    ),
}


def build(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """The random model in memory, in eval mode and float32."""
    import transformers

    config_class, model_class, own = MODELS[name]
    config = getattr(transformers, config_class)(**{**_TEXT, **own, **changes})
    model: nn.Module = getattr(transformers, model_class)(config)
    randomize(model, seed)
    _spread(model)
    return model.eval()


def _spread(model: nn.Module) -> None:
    """Give tokens different experts where a table of the model's says which they get."""
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):
            first = torch.arange(len(table))[:, None]
            table.copy_((first + torch.arange(table.shape[1])) % 8)


@cache
def source(name: str) -> HuggingFaceSource:
    """The random model as a source, which tests share."""
    from moec.huggingface.source import HuggingFaceSource

    return HuggingFaceSource.from_model(build(name))
