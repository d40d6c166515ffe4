"""The architecture of nomic-embed-text-v2-moe (arXiv 2502.07972), which transformers has without its experts: an
encoder with rotary positions, and a mixture of two of E experts in every second layer.

This file is also what a folder of such a model holds as its own code.
"""

import torch
from torch import Tensor, nn
from transformers import NomicBertConfig, NomicBertModel


class NomicMoeConfig(NomicBertConfig):
    model_type = "nomic_bert_moe"

    num_experts: int = 4
    moe_top_k: int = 2
    moe_every_n_layers: int = 2


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


class NomicMoeModel(NomicBertModel):
    config_class = NomicMoeConfig

    def __init__(self, config: NomicMoeConfig) -> None:
        super().__init__(config)
        for layer in self.layers[1 :: config.moe_every_n_layers]:
            layer.mlp = Mixture(config)
        self.post_init()
