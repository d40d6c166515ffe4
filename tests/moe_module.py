"""A tiny model that holds the dialect's operators, for tests of everything that looks at a program or runs one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moec.frontend.domain import Domain
from moec.frontend.module_source import ModuleSource

VOCAB, HIDDEN, EXPERTS = 50, 16, 4


class Block(nn.Module):
    """`moec::moe` when fused, else a router and `moec::experts`; with biases when fused."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.router = nn.Parameter(torch.randn(EXPERTS, HIDDEN))
        self.w_in, self.w_out = (
            nn.Parameter(torch.randn(EXPERTS, 24, HIDDEN)),
            nn.Parameter(torch.randn(EXPERTS, HIDDEN, 12)),
        )
        self.b_in, self.b_out = nn.Parameter(torch.randn(EXPERTS, 24)), nn.Parameter(torch.randn(EXPERTS, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return torch.ops.moec.moe(x, self.router, None, None, self.w_in, self.w_out, self.b_in, self.b_out, top_k=2)
        weights, ids = torch.ops.moec.route(nn.functional.linear(x, self.router), top_k=2)
        return torch.ops.moec.experts(x, ids, weights, self.w_in, self.w_out)


class MoeModel(nn.Module):
    """Embedding, two residual blocks with norms, a head."""

    def __init__(self, fused: tuple[bool, bool] = (False, True), seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, VOCAB)
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in fused)
        self.blocks = nn.ModuleList(Block(f) for f in fused)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return {"logits": self.head(x)}


def source_of(model: nn.Module, vocabulary: int = VOCAB) -> ModuleSource:
    """The model with dynamic batch and sequence, captured at batch 3 and length 11."""
    ids = torch.randint(0, vocabulary, (3, 11), generator=torch.Generator().manual_seed(0))
    return ModuleSource(
        model,
        {"input_ids": ids},
        {"input_ids": ("batch", "sequence")},
        domains={"input_ids": Domain("token", vocabulary)},
    )
