"""Mixtures in plain torch whose rules differ, and some that look like one and are none: for what `find-moe` says."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.mixtures import EXPERTS, WIDTH, Expert, Loop, OneHot, Stacked
from tests.written_with_names import NAMED, NAMED_WRONG


class Renormalised(Loop):
    """Mixtral's rule."""

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().choice(x)
        return weights / weights.sum(-1, keepdim=True), ids


class Corrected(Loop):
    """DeepSeek-V3's: sigmoid scores, a bias for the choice alone, a scale."""

    def __init__(self) -> None:
        super().__init__(gated=True)
        self.register_buffer("correction", torch.randn(EXPERTS) * 0.3)

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.router(x).sigmoid()
        ids = (scores + self.correction).topk(self.top_k, -1).indices
        weights = scores.gather(1, ids)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5, ids


class Grouped(Loop):
    """The best two of four groups, and two experts of them."""

    experts_in_all = 8

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 8)
        self.experts = nn.ModuleList(Expert() for _ in range(8))

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.router(x).softmax(-1)
        best = scores.view(-1, 4, 2).max(-1).values.topk(2, -1).indices
        open_ = torch.zeros(x.shape[0], 4).scatter_(1, best, 1.0).repeat_interleave(2, 1)
        return scores.masked_fill(open_ == 0, float("-inf")).topk(self.top_k, -1)  # type: ignore[return-value]


class WithShared(Loop):
    """An expert for all tokens beside those that are chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Expert()

    def mix(self, x: Tensor) -> Tensor:
        return super().mix(x) + self.shared(x)  # type: ignore[no-any-return]


class ScoredBefore(OneHot):
    """Llama 4's: scores multiply what goes in."""

    def mix(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        rows = x[None] * gates.T[..., None]
        outs = torch.stack([expert(rows[e]) for e, expert in enumerate(self.experts)])
        return (outs * (gates.T[..., None] > 0)).sum(0)


class InThreeDimensions(OneHot):
    """Tokens stay `[batch, sequence, width]`."""

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        weights, ids = self.router(x).softmax(-1).topk(self.top_k, -1)
        mask = (F.one_hot(ids, EXPERTS).to(x.dtype) * weights[..., None]).sum(-2)
        outs = torch.stack([expert(x) for expert in self.experts], -2)
        return self.head(x + (mask[..., None] * outs).sum(-2))  # type: ignore[no-any-return]


class GatedStack(Stacked):
    """Gate and up in one stack, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, 48, WIDTH) / 4)
        self.up_bias = nn.Parameter(torch.randn(EXPERTS, 48) / 4)
        self.down_bias = nn.Parameter(torch.randn(EXPERTS, WIDTH) / 4)

    def mix(self, x: Tensor) -> Tensor:
        h = torch.bmm(x[None].expand(EXPERTS, -1, -1), self.up.transpose(1, 2)) + self.up_bias[:, None]
        up, gate = h.chunk(2, -1)
        y = torch.bmm(up * F.silu(gate), self.down) + self.down_bias[:, None]
        return (y * self.gates(x).T[..., None]).sum(0)


class Wide(nn.Module):
    """An expert of any width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(WIDTH, width), nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class OwnWidths(Loop):
    """Each expert has a width of its own."""

    widths: tuple[int, ...] = (8, 24, 24, 12)

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Wide(width) for width in self.widths)


class Cooled(Loop):
    """Logits over a temperature, and a scale of the weights."""

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = (self.router(x) / 0.7).softmax(-1).topk(self.top_k, -1)
        return weights * 1.5, ids


class SigmoidOfOne(Loop):
    """The largest of sigmoids; those of large logits are all 1."""

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = self.router(x).sigmoid().max(-1, keepdim=True)
        return weights, ids


class SigmoidOfAll(Loop):
    """All experts run, each with a sigmoid of its own: nothing is chosen."""

    def mix(self, x: Tensor) -> Tensor:
        gates = self.router(x).sigmoid()
        return sum(gates[:, e, None] * expert(x) for e, expert in enumerate(self.experts))  # type: ignore[return-value]


FOUND: tuple[type, ...] = (
    Cooled, SigmoidOfOne, Renormalised, Corrected, Grouped, WithShared, ScoredBefore, InThreeDimensions, GatedStack,
    OwnWidths, SigmoidOfAll, *NAMED,
)  # fmt: skip


class FarApart(OwnWidths):
    """One of them is many times as wide as the others."""

    widths = (8, 96, 8, 8)


class Shifted(Loop):
    """Each token goes to the expert behind the one that was chosen: a mixture, with its experts in another order."""

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().choice(x)
        return weights, (ids + 1) % EXPERTS


class ByLogits(Loop):
    """The largest logit is chosen, also where all sigmoids are 1."""

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, ids = self.router(x).max(-1, keepdim=True)
        return logits.sigmoid(), ids


class Threshold(Loop):
    """Experts of a small share are left out."""

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().choice(x)
        return weights.masked_fill(weights < 0.05, 0.0), ids


class Positional(Loop):
    """The first token counts twice."""

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = super().choice(x)
        return weights + (torch.arange(x.shape[0]) == 0)[:, None] * weights, ids


class Smooth(Expert):
    """Another activation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class OneDiffers(Loop):
    """The last expert has another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.experts[-1] = Smooth()


class OfLengthOne(Expert):
    """What comes out is brought to length one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x), dim=-1)


class Normalised(Loop):
    """Experts that normalise what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(OfLengthOne() for _ in range(EXPERTS))


class Soft(Loop):
    """Soft MoE (Puigcerver et al. 2023): each expert sees two weighted means of all tokens, and each token all of
    them."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(WIDTH, 2 * EXPERTS))

    def mix(self, x: Tensor) -> Tensor:
        logits = x @ self.slots
        means = (logits.softmax(0).T @ x).view(EXPERTS, 2, WIDTH)
        outs = torch.stack([expert(means[e]) for e, expert in enumerate(self.experts)])
        return logits.softmax(-1) @ outs.view(-1, WIDTH)


class Squared(Loop):
    """A softmax weighs all experts, and the square of a weight counts."""

    def mix(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1) ** 2
        return sum(gates[:, e, None] * expert(x) for e, expert in enumerate(self.experts))  # type: ignore[return-value]


class Rectified(Loop):
    """All experts run, each weighed by what is above zero of its logit."""

    def mix(self, x: Tensor) -> Tensor:
        gates = self.router(x).relu()
        return sum(gates[:, e, None] * expert(x) for e, expert in enumerate(self.experts))  # type: ignore[return-value]


class RectifiedStack(Loop):
    """The same, their outputs in one tensor."""

    def mix(self, x: Tensor) -> Tensor:
        outs = torch.stack([expert(x) for expert in self.experts], 1)
        return (self.router(x).relu()[..., None] * outs).sum(1)


ALL_RUN: tuple[type, ...] = (Soft, Squared, Rectified, RectifiedStack)
WRONG: tuple[type, ...] = (
    *ALL_RUN, ByLogits, Shifted, Threshold, Positional, OneDiffers, Normalised, FarApart, *NAMED_WRONG,
)  # fmt: skip


class Listed(Loop):
    """A loop over the experts that some token chose."""

    def mix(self, x: Tensor) -> Tensor:
        weights, ids = self.choice(x)
        out = torch.zeros_like(x)
        for e in ids.unique().tolist():  # type: ignore[no-untyped-call]
            token, nth = torch.where(ids == e)
            out[token] += weights[token, nth, None] * self.experts[e](x[token])
        return out


class Block(nn.Module):
    """A mixture as a module of its own, its router a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))
        self.experts, self.shared = nn.ModuleList(Expert(gated=True) for _ in range(EXPERTS)), Expert()

    def routed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and ids `[T, 2]`."""
        weights, ids = F.linear(rows, self.weight).sigmoid().topk(2, -1)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 1.5, ids

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, WIDTH)
        weights, ids = self.routed(rows)
        counts = ids.flatten().bincount(minlength=EXPERTS).tolist()
        order, out, at = ids.flatten().argsort(stable=True), torch.zeros_like(rows), 0
        for count, expert in zip(counts, self.experts, strict=True):
            if count:
                mine = order[at : at + count]
                out.index_add_(0, mine // 2, expert(rows[mine // 2]) * weights.flatten()[mine, None])
            at += count
        return (out + self.shared(rows)).view_as(x)


class Sorted(Loop):
    """DeepSeek's inference loop: rows sorted by expert, counts taken to Python."""

    def __init__(self) -> None:
        super().__init__()
        del self.experts, self.router
        self.block = Block()

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embedding(input_ids)
        return self.head(h + self.block(h))  # type: ignore[no-any-return]
