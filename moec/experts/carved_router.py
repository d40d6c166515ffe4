"""Routers for experts that were cut out of a dense network: in closed form, from what the experts give.

An expert matters to a token by the norm of what it would add. A linear router is fitted to the logarithm of that norm
by ridge regression, so that it needs no training, and every kernel of a mixture takes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect import Activation
from moec.experts.dense_network import Dense, token_blocks

ROUTERS = ("ridge", "mean-row", "analytical", "random")
ALWAYS = 1e4  # the logit of a shared expert: above every other, and a number in float16
_FLOOR = 1e-3  # of the mean norm, below which norms are all alike: a logarithm has no end there


@dataclass(frozen=True)
class Router:
    """What says which experts a token needs.

    Attributes:
        weight: `[E, H]`. bias: `[E]`, added at the end.
        up: `[E, H]` of a router that is a small gated network (CMoE's), else None.
        activation: of such a network; None for a linear router.
    """

    weight: Tensor
    bias: Tensor
    up: Tensor | None = None
    activation: Activation | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Logits `[T, E]` of `[T, H]`."""
        if self.activation is None:
            return F.linear(x, self.weight, self.bias)
        rows = self.weight if self.up is None else torch.cat([self.weight, self.up])
        return self.activation(F.linear(x, rows)).abs() + self.bias


def contributions(hidden: Iterable[Tensor], w_out: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """The norm of what each group of neurons adds to the output, `[T, E]` in float32.

    Args:
        hidden: `[T, I]`, block by block. w_out: `[H, I]`. groups: the neurons of each expert.
    """
    columns = [w_out[:, group].float().T.contiguous() for group in groups]
    parts = [
        torch.stack([(rows[:, g] @ c).norm(dim=1) for g, c in zip(groups, columns, strict=True)], 1) for rows in hidden
    ]
    return torch.cat(parts)


def ridge(x: Tensor, norms: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """A linear router whose logits are nearest to the logarithms of the experts' norms.

    Args:
        x: `[T, H]`, what the network reads. norms: `[T, E]`.
        strength: of the penalty on its rows, in units of the mean squared deviation of x.

    Returns:
        router `[E, H]` and bias `[E]`, in float32.
    """
    wanted = (norms + _FLOOR * norms.mean()).clamp(min=torch.finfo(norms.dtype).tiny).log().double()
    mean, middle = x.mean(0, dtype=torch.float64), wanted.mean(0)
    moments, cross = (torch.zeros(x.shape[1], n, dtype=torch.float64) for n in (x.shape[1], wanted.shape[1]))
    for part in token_blocks(len(x)):
        rows = x[part].double() - mean
        moments.addmm_(rows.T, rows)
        cross.addmm_(rows.T, wanted[part] - middle)
    spread = float(moments.diagonal().mean())
    moments.diagonal().add_(max(strength * spread, 1e-12))
    router = torch.linalg.solve(moments, cross).T
    return router.float(), (middle - router @ mean).float()


def mean_rows(w_in: Tensor, groups: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of the experts' rows of the first matrix, without a bias (MoEfication, arXiv 2110.01786; ExpertWeaver,
    arXiv 2602.15521)."""
    return torch.stack([w_in[group].float().mean(0) for group in groups]), torch.zeros(len(groups))


def representatives(dense: Dense, marks: Tensor, groups: list[Tensor]) -> tuple[Tensor, Tensor | None, Tensor]:
    """The neuron of each expert that is marked most like the expert's mean: its rows of the first matrix, each of unit
    length, are a router with the network's own activation (CMoE, arXiv 2502.04416).

    Args:
        marks: `[I, T]`, see `neuron_groups.indicators`.

    Returns:
        the rows of the gate, or of the one first matrix, `[E, H]`; those of the up half if there is one; zeros `[E]`.
    """
    picked = []
    for group in groups:
        own = marks[group]
        picked.append(int(group[(own - own.mean(0)).abs().sum(1).argmin()]))
    size, rows = dense.w_out.shape[1], F.normalize(dense.w_in.float(), dim=1)
    at = torch.tensor(picked, dtype=torch.int64)
    return rows[at], rows[size + at] if dense.activation.gated else None, torch.zeros(len(groups))
