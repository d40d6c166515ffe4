"""The architecture of nomic-embed-text-v2-moe (arXiv 2502.07972): an encoder with rotary positions and norms behind its
sums, and a mixture of the best two of E experts in every second layer.

No release of transformers has it. This file is what a folder of such a model holds as its own code, so it needs nothing
else; `save` makes such a folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class NomicMoeConfig(PretrainedConfig):
    model_type = "nomic_moe"

    def __init__(self, **options: Any) -> None:
        sizes = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40}
        rest = {"num_hidden_layers": 2, "num_experts": 4, "moe_top_k": 2, "moe_every_n_layers": 2, "rotary_base": 1e4}
        super().__init__(**{"pad_token_id": 1, "max_position_embeddings": 256, **sizes, **rest, **options})


class Router(nn.Module):
    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.layer, self.moe_top_k = nn.Linear(config.hidden_size, config.num_experts, bias=False), config.moe_top_k

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = self.layer(x.view(-1, x.shape[-1])).softmax(-1, dtype=torch.float32)
        top_weights, top_experts = weights.topk(self.moe_top_k, -1)
        return weights.to(x.dtype), top_weights.to(x.dtype), top_experts


class ExpertMLP(nn.Module):
    """Matrices of all experts, one below the other, both `[E*I, H]`."""

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.hidden_size, self.ffn_hidden_size = config.hidden_size, config.intermediate_size
        self.moe_num_experts, self.activation_fn = config.num_experts, nn.GELU()
        shape = self.moe_num_experts * self.ffn_hidden_size, self.hidden_size
        self.w1, self.w2 = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor, expert: int) -> Tensor:
        up, down = (w.view(self.moe_num_experts, self.ffn_hidden_size, -1)[expert] for w in (self.w1, self.w2))
        return self.activation_fn(x @ up.T) @ down  # type: ignore[no-any-return]


class Experts(nn.Module):
    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.moe_num_experts, self.mlp = config.num_experts, ExpertMLP(config)
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, x: Tensor, weights: Tensor, top_weights: Tensor, top_experts: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        rows = x.view(-1, hidden)
        out = torch.zeros_like(rows)
        for expert in range(self.moe_num_experts):
            token, nth = torch.where(top_experts == expert)
            if token.shape[0] == 0:
                continue
            tokens, places = token.tolist(), nth.tolist()
            out.index_add_(0, token, self.mlp(rows[tokens], expert) * top_weights[tokens, places, None])
        return out.view(batch, length, hidden) + self.bias


class Mixture(nn.Module):
    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.router, self.experts = Router(config), Experts(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x, *self.router(x))  # type: ignore[no-any-return]


class Dense(nn.Module):
    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, config: NomicMoeConfig, mixture: bool) -> None:
        super().__init__()
        hidden, self.heads = config.hidden_size, config.num_attention_heads
        self.Wqkv, self.out_proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.mlp = Mixture(config) if mixture else Dense(config)

    def forward(self, x: Tensor, seen: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        query, key, value = self.Wqkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key = (y * cos + torch.cat([-y.chunk(2, -1)[1], y.chunk(2, -1)[0]], -1) * sin for y in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = self.norm1(x + self.out_proj(mixed.transpose(1, 2).reshape(batch, length, hidden)))
        return self.norm2(x + self.mlp(x))  # type: ignore[no-any-return]


class NomicMoeModel(PreTrainedModel):
    config_class = NomicMoeConfig

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__(config)
        every = config.moe_every_n_layers
        self.embeddings, self.norm = (
            nn.Embedding(config.vocab_size, config.hidden_size),
            nn.LayerNorm(config.hidden_size),
        )
        self.layers = nn.ModuleList(Block(config, k % every == every - 1) for k in range(config.num_hidden_layers))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: weights come from a file, or from whoever draws them."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        x = self.norm(self.embeddings(input_ids))
        width = self.config.hidden_size // self.config.num_attention_heads
        steps = torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * self.config.rotary_base**-steps
        cos, sin = (torch.cat([f, f], -1).to(x.dtype) for f in (angles.cos(), angles.sin()))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for layer in self.layers:
            x = layer(x, mask.bool()[:, None, None], cos, sin)
        return BaseModelOutput(last_hidden_state=x)


@torch.no_grad()
def save(folder: Path) -> None:
    """A small model with drawn weights and its own code."""
    generator = torch.Generator().manual_seed(0)
    model = NomicMoeModel(NomicMoeConfig()).eval()
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.dim() > 1 else 0.1) + (p.dim() == 1))
    model.save_pretrained(folder)
    shutil.copy(__file__, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "nomic_moe.NomicMoeConfig", "AutoModel": "nomic_moe.NomicMoeModel"}
    (folder / "config.json").write_text(json.dumps(config))
