"""The random decoders that the benchmarks of decoders run, as Hugging Face folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 32_000


@dataclass(frozen=True)
class Case:
    """A decoder of 12 layers, hidden 768, 12 heads on 4 key-value heads of 64, tied embeddings of 32,000 tokens."""

    title: str
    experts: int

    def save(self, folder: Path) -> None:
        """Write the random model as a Hugging Face folder; the same weights every time."""
        from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

        torch.manual_seed(0)
        shape: dict[str, Any] = {
            "vocab_size": VOCABULARY,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "head_dim": 64,
        }
        shape |= {
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
        }
        shape |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        if self.experts:
            moe = {
                "num_experts": self.experts,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 256,
                "norm_topk_prob": True,
                "intermediate_size": 1024,
            }
            model: Any = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **moe))
        else:
            model = Qwen3ForCausalLM(Qwen3Config(**shape, intermediate_size=1024))
        model.save_pretrained(folder)


@dataclass(frozen=True)
class Hybrid:
    """Qwen3-Next's shape, small: 12 layers, three of gated delta net before each of attention, hidden 768, 32 experts
    of 256 and a shared one, tied embeddings of 32,000 tokens."""

    title: str

    def save(self, folder: Path) -> None:
        """Write the random model as a Hugging Face folder; the same weights every time."""
        from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

        torch.manual_seed(0)
        config = Qwen3NextConfig(
            vocab_size=VOCABULARY, hidden_size=768, num_hidden_layers=12, max_position_embeddings=4096,
            num_attention_heads=6, num_key_value_heads=2, head_dim=128,
            linear_num_key_heads=6, linear_num_value_heads=12, linear_key_head_dim=128, linear_value_head_dim=128,
            num_experts=32, num_experts_per_tok=4, moe_intermediate_size=256, shared_expert_intermediate_size=256,
            norm_topk_prob=True, tie_word_embeddings=True, initializer_range=0.05,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        Qwen3NextForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]


HYBRIDS = {"hybrid": Hybrid("Qwen3-Next, 32 experts of 256, top-4, and a shared one: 0.3 B parameters, 0.1 B active")}
CASES = {
    "moe": Case("Qwen3-MoE, 32 experts of 256, top-4: 0.27 B parameters, 0.07 B active", 32),
    "dense": Case("Qwen3, dense, FFN of 1024", 0),
}
