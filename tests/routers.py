"""A mixture-of-experts block around any router, and the routers that models have, as they write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.dialect import Routing
from moec.frontend.export import capture
from moec.program.program import Program

HIDDEN, EXPERTS, INNER = 16, 8, 12
Router = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Block(nn.Module):
    """`x [B, S, H]` through a linear router, `router(logits, bias) -> weights, ids`, and experts."""

    def __init__(self, router: Router, flat: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.flat = router, flat
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        nn.init.normal_(self.gate.weight, std=0.6)
        self.w_in = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, HIDDEN) * 0.3)
        self.w_out = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER) * 0.3)
        self.register_buffer("correction", torch.randn(EXPERTS) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, HIDDEN) if self.flat else x
        weights, ids = self.router(self.gate(rows), self.get_buffer("correction"))
        y: Tensor = torch.ops.moec.experts(rows, ids, weights, self.w_in, self.w_out)
        return y.view(x.shape)


def captured(block: nn.Module) -> Program:
    return capture(block, {"x": torch.randn(2, 5, HIDDEN)}, {"x": ("batch", "sequence")})


def other_input() -> Tensor:
    """An input unlike the capture's in batch, length and content."""
    return torch.randn(3, 7, HIDDEN, generator=torch.Generator().manual_seed(1))


def mixtral(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = torch.topk(F.softmax(logits.float(), dim=-1), 2, dim=-1)
    weights /= weights.sum(dim=-1, keepdim=True)
    return weights, ids


def olmoe(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = torch.topk(F.softmax(logits, dim=1, dtype=torch.float), 3, dim=-1)
    return weights.to(logits.dtype), ids


def granite(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    top, ids = logits.float().topk(2, dim=1)
    return torch.softmax(top, dim=1).type_as(logits), ids


def _limited(choice: Tensor, best: Tensor, closed: float) -> Tensor:
    mask = torch.zeros_like(best)
    mask.scatter_(1, torch.topk(best, k=2, dim=-1, sorted=False)[1], 1)
    mask = mask.unsqueeze(-1).expand(-1, 4, EXPERTS // 4).reshape(-1, EXPERTS)
    return choice.masked_fill(~mask.bool(), closed)


def deepseek_v2(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.softmax(dim=-1, dtype=torch.float32)
    weights, ids = torch.topk(
        _limited(scores, scores.view(-1, 4, EXPERTS // 4).max(dim=-1).values, 0.0), k=3, dim=-1, sorted=False
    )
    return weights * 1.5, ids


def _deepseek_v3(logits: Tensor, bias: Tensor, closed: float, epsilon: float = 1e-20) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid()
    choice = scores + bias
    ids = torch.topk(
        _limited(choice, choice.view(-1, 4, EXPERTS // 4).topk(2, dim=-1)[0].sum(dim=-1), closed),
        k=3,
        dim=-1,
        sorted=False,
    )[1]
    weights = scores.gather(1, ids)
    weights /= weights.sum(dim=-1, keepdim=True) + epsilon
    return weights * 2.5, ids


def deepseek_v3(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _deepseek_v3(logits, bias, -torch.inf)


def deepseek_v3_first_code(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _deepseek_v3(logits, bias, 0.0)


def deepseek_v4(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scores = F.softplus(logits).sqrt()
    ids = torch.topk(scores + bias, 2, dim=-1, sorted=False).indices
    weights = scores.gather(1, ids)
    return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * 1.5, ids


def minimax(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scores = torch.sigmoid(logits.float())
    _, ids = torch.topk(scores + bias, 2, dim=-1, sorted=False)
    weights = scores.gather(1, ids)
    weights /= weights.sum(dim=-1, keepdim=True)
    return weights, ids


def ernie(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    scores = F.softmax(logits, dim=1, dtype=torch.float)
    _, ids = torch.topk(scores + bias[None].squeeze(), 2, dim=-1)
    weights = torch.gather(scores, dim=-1, index=ids)
    return weights / torch.clamp(weights.sum(dim=-1, keepdim=True), min=1e-12), ids


def llama4(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    top, ids = torch.topk(logits, 1, dim=1)
    scores = torch.full_like(logits, -torch.inf).scatter_(1, ids, top).float().sigmoid()
    return scores.gather(1, ids), ids


def switch(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    weight, chosen = F.softmax(logits, dim=-1).max(dim=-1)
    return weight.unsqueeze(-1), chosen.unsqueeze(-1)


def argmax(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    ids = logits.argmax(dim=-1, keepdim=True)
    return F.softmax(logits, dim=-1).gather(-1, ids), ids


def carved(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    ids = logits.topk(4, dim=-1).indices
    return torch.ones_like(ids, dtype=torch.float32), ids


# router -> the rule that it follows, and whether it has a correction bias
KNOWN: dict[Router, tuple[Routing, bool]] = {
    mixtral: (Routing(2), False),
    olmoe: (Routing(3, combine="scores"), False),
    granite: (Routing(2, "identity", "softmax"), False),
    deepseek_v2: (Routing(3, combine="scores", groups=4, top_groups=2, scale=1.5), False),
    deepseek_v3: (Routing(3, "sigmoid", groups=4, top_groups=2, group_score="top2", scale=2.5, epsilon=1e-20), True),
    deepseek_v3_first_code: (
        Routing(
            3, "sigmoid", groups=4, top_groups=2, group_score="top2", scale=2.5, epsilon=1e-20, closed_as_zero=True
        ),
        True,
    ),
    deepseek_v4: (Routing(2, "sqrt_softplus", scale=1.5, epsilon=1e-20), True),
    minimax: (Routing(2, "sigmoid"), True),
    ernie: (Routing(2, floor=1e-12), True),
    llama4: (Routing(1, "sigmoid", "scores"), False),
    switch: (Routing(1, combine="scores"), False),
    argmax: (Routing(1, combine="scores"), False),
    carved: (Routing(4, "identity", "ones"), False),
}


# ---------------------------------------------------------------------- routers that no rule can say
def sparse_mixer(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    best, ids = logits.max(dim=-1, keepdim=True)
    far = (best - logits) / logits.abs().clamp(min=best) > 0.02
    return torch.softmax(logits.masked_fill(far, -torch.inf), dim=-1).gather(-1, ids), ids


def scaled_per_expert(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = mixtral(logits, bias)
    return weights * bias[ids], ids


def warm(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    top, ids = logits.topk(2, dim=-1)
    return torch.softmax(top / 2.0, dim=-1), ids


def by_position(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    ids = (torch.arange(logits.shape[0]) % EXPERTS)[:, None]
    return torch.softmax(logits, dim=-1).gather(-1, ids), ids


def least(logits: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    weights, ids = torch.softmax(logits, dim=-1).topk(2, largest=False)
    return weights, ids


UNKNOWN: dict[Router, str] = {
    sparse_mixer: "no routing rule",
    scaled_per_expert: "no routing rule",
    warm: "no routing rule",
    least: "no routing rule",
    by_position: "not chosen by a top-k",
}
