"""The last matrix of a network that was cut, fitted anew: what is left of the neurons makes up for what a token leaves
out.

Neurons of one network say similar things. So least squares on a text takes back more than half of what leaving experts
out costs: the last matrix and the experts' biases change, shapes and work stay. A penalty on the change keeps neurons
as they are that the text says little of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_STRENGTH = 0.1  # of the penalty, in units of the mean energy of a neuron that counts
_BLOCK = 2048  # tokens


@dataclass(frozen=True)
class Output:
    """What a cut network's output is made of: `(hidden * chosen) @ w_out.T + chosen @ b_out + constant`.

    Attributes:
        w_out: `[H, I]`. b_out: `[E, H]`, added where an expert is chosen. constant: `[H]`.
    """

    w_out: Tensor
    b_out: Tensor
    constant: Tensor

    def __call__(self, hidden: Tensor, chosen: Tensor, owner: Tensor) -> Tensor:
        """`[T, H]` of hidden values `[T, I]` and chosen experts `[T, E]`; `owner`: each neuron's expert, `[I]`."""
        kept = hidden.float() * chosen[:, owner]
        return kept @ self.w_out.float().T + chosen.float() @ self.b_out + self.constant


def refitted(before: Output, hidden: Tensor, chosen: Tensor, owner: Tensor, whole: Tensor) -> Output:
    """The output that is nearest to the dense network's, a penalty on the change of the last matrix included.

    Args:
        before: what it is fitted from. hidden: `[T, I]`. chosen: `[T, E]`. owner: `[I]`.
        whole: the dense network's last matrix `[H, I]`: its output is what is wanted.
    """
    size, count = hidden.shape[1], chosen.shape[1]
    moments, cross = torch.zeros(size + count, size + count), torch.zeros(size + count, len(whole))
    mean, middle = torch.zeros(size + count), torch.zeros(len(whole))
    for rows, picked in _blocks(hidden, chosen):
        seen = torch.cat([rows * picked[:, owner], picked.float()], 1)
        wanted = rows @ whole.float().T - before(rows, picked, owner)
        moments.addmm_(seen.T, seen)
        cross.addmm_(seen.T, wanted)
        mean += seen.sum(0) / len(hidden)
        middle += wanted.sum(0) / len(hidden)
    moments.addr_(mean, mean, alpha=-len(hidden))
    cross.addr_(mean, middle, alpha=-len(hidden))
    energy = float(moments.diagonal()[:size].mean())
    moments.diagonal().add_(max(_STRENGTH * energy, 1e-12))
    factor, failed = torch.linalg.cholesky_ex(moments)
    if int(failed):  # nothing to go by
        return before
    change = torch.cholesky_solve(cross, factor)
    constant = before.constant + middle - mean @ change
    return Output(before.w_out.float() + change[:size].T, before.b_out + change[size:], constant)


def _blocks(hidden: Tensor, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(hidden), _BLOCK):
        yield hidden[start : start + _BLOCK].float(), chosen[start : start + _BLOCK]
