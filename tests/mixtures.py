"""Mixtures of experts written out in plain torch, in the ways that research code has, and one layer that is none."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.frontend.module_source import ModuleSource

VOCABULARY, WIDTH, EXPERTS = 64, 16, 4


class Expert(nn.Module):
    """Two layers with biases, or three where one gates."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.gate = nn.Linear(WIDTH, 24) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)) * self.gate(x) if self.gate else F.relu(self.up(x)))  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """An embedding, a residual mixture and a head; a subclass says how experts are mixed."""

    def __init__(self, top_k: int = 2, gated: bool = False) -> None:
        super().__init__()
        self.embedding, self.router, self.top_k = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, EXPERTS), top_k
        self.experts, self.head = nn.ModuleList(Expert(gated) for _ in range(EXPERTS)), nn.Linear(WIDTH, 10)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embedding(input_ids)
        x = h.reshape(-1, WIDTH)
        return self.head((x + self.mix(x)).view(h.shape))  # type: ignore[no-any-return]

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and ids `[T, K]`."""
        weights, ids = self.router(x).softmax(-1).topk(self.top_k, -1)
        return weights, ids

    def gates(self, x: Tensor) -> Tensor:
        """The same as `[T, E]`, 0 for what was not chosen."""
        weights, ids = self.choice(x)
        return torch.zeros(x.shape[0], EXPERTS).scatter(1, ids, weights)

    def mix(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def close(self, expert: int) -> Mixture:
        """Let the router send no token to an expert."""
        self.router.bias[expert] = -1e3
        return self


class Loop(Mixture):
    """Rows that chose an expert are taken out, and added back."""

    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, nth = torch.where(ids == e)
            out[token] += weights[token, nth, None] * expert(x[token])
        return out


class IndexAdd(Mixture):
    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, nth = torch.where(ids == e)
            out = out.index_add(0, token, weights[token, nth, None] * expert(x[token]))
        return out


class OneHot(Mixture):
    """All experts on all tokens, stacked, and a mask over them."""

    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        mask = (F.one_hot(ids, EXPERTS).to(x.dtype) * weights[..., None]).sum(1)
        return torch.einsum("te,ted->td", mask, torch.stack([expert(x) for expert in self.experts], 1))


class Switch(Mixture):
    """Top-1 by a maximum, `torch.where`, and a capacity over which tokens pass by."""

    capacity = 1000

    def mix(self, x: Tensor) -> Tensor:
        weight, ids = self.router(x).softmax(-1).max(-1)
        hot = F.one_hot(ids, EXPERTS)
        keep = (hot.cumsum(0) * hot).sum(-1) <= self.capacity
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + torch.where(((ids == e) & keep)[:, None], expert(x) * weight[:, None], 0.0)
        return out


class Masked(Mixture):
    """Scores below the k-th are set to minus infinity before the softmax."""

    def mix(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        least = scores.topk(self.top_k, -1).values[:, -1:]
        gates = scores.masked_fill(scores < least, float("-inf")).softmax(-1)
        return sum(gates[:, e : e + 1] * expert(x) for e, expert in enumerate(self.experts))  # type: ignore[return-value]


class Stacked(Mixture):
    """Experts in two parameters; all of them on all tokens by `bmm`."""

    def __init__(self, top_k: int = 2) -> None:
        super().__init__(top_k)
        del self.experts
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, 24) / math.sqrt(WIDTH))
        self.down = nn.Parameter(torch.randn(EXPERTS, 24, WIDTH) / math.sqrt(24))

    def mix(self, x: Tensor) -> Tensor:
        y = torch.bmm(F.gelu(torch.bmm(x[None].expand(EXPERTS, -1, -1), self.up)), self.down)
        return (y * self.gates(x).T[..., None]).sum(0)


class Einsum(Stacked):
    def mix(self, x: Tensor) -> Tensor:
        y = torch.einsum("teh,ehd->ted", F.gelu(torch.einsum("td,edh->teh", x, self.up)), self.down)
        return torch.einsum("te,ted->td", self.gates(x), y)


class Dispatched(Stacked):
    """Tokens are multiplied by a mask on their way in, too."""

    def mix(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        rows = torch.einsum("te,td->etd", (gates > 0).to(x.dtype), x)
        return torch.einsum("te,etd->td", gates, torch.bmm(F.gelu(torch.bmm(rows, self.up)), self.down))


class Gathered(Stacked):
    """Each token takes its experts' weights."""

    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        hidden = F.gelu(torch.einsum("td,tkdh->tkh", x, self.up[ids]))
        return (torch.einsum("tkh,tkhd->tkd", hidden, self.down[ids]) * weights[..., None]).sum(1)


class OneAfterAnother(Stacked):
    """A loop over the parameters' rows."""

    def mix(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        return sum(gates[:, e, None] * (F.gelu(x @ self.up[e]) @ self.down[e]) for e in range(EXPERTS))  # type: ignore[return-value]


class Grouped(Stacked):
    """Rows sorted by expert, and a grouped product in half precision."""

    def mix(self, x: Tensor) -> Tensor:
        weight, ids = self.router(x).softmax(-1).max(-1)
        order, ends = ids.argsort(), F.one_hot(ids, EXPERTS).sum(0).cumsum(0).to(torch.int32)
        up, down = self.up.bfloat16(), self.down.bfloat16()
        hidden = F.gelu(torch._grouped_mm(x[order].bfloat16(), up, ends))
        y = torch._grouped_mm(hidden, down, ends)
        return y.to(x.dtype)[order.argsort()] * weight[:, None]


class Named(Mixture):
    """Attributes with a number in their names."""

    def __init__(self) -> None:
        super().__init__()
        del self.experts
        for e in range(EXPERTS):
            setattr(self, f"expert_{e}", Expert())

    def mix(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        return sum(gates[:, e, None] * getattr(self, f"expert_{e}")(x) for e in range(EXPERTS))  # type: ignore[return-value]


class Rectified(Mixture):
    """Gates that a ReLU closes: nothing is selected, and what stays closed is an unused matrix."""

    def mix(self, x: Tensor) -> Tensor:
        gates = self.router(x).relu()
        return sum(gates[:, e, None] * expert(x) for e, expert in enumerate(self.experts))  # type: ignore[return-value]


class Heads(Mixture):
    """No mixture: all of the list is used by every token, behind one gate that a maximum opens."""

    def mix(self, x: Tensor) -> Tensor:
        best = self.router(x).max(-1, keepdim=True)
        return torch.stack([expert(x) for expert in self.experts]).sum(0) * (best.values > 0)


WAYS: tuple[type[Mixture], ...] = (
    Loop, IndexAdd, OneHot, Switch, Masked, Stacked, Einsum, Dispatched, Gathered, OneAfterAnother, Grouped, Named,
)  # fmt: skip


def source_of(model: nn.Module) -> ModuleSource:
    """The model with dynamic batch and sequence."""
    ids = torch.randint(0, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(0))
    return ModuleSource(model.eval(), {"input_ids": ids}, {"input_ids": ("batch", "sequence")})


def mixture(way: type[Mixture], seed: int = 0) -> Mixture:
    """One with random weights."""
    torch.manual_seed(seed)
    return way()
