"""The last matrix of a network that was cut, fitted anew: what is left of the neurons makes up for what a token leaves
out.

Neurons of one network say similar things. So least squares on a text takes back more than half of what leaving experts
out costs: the last matrix and the experts' biases change, shapes and work stay. A penalty on the change keeps neurons
as they are that the text says little of.

Where the networks before have been cut, too, the residual stream that arrives is another than the untouched model's.
The same neurons can take a part of that back: the fit is linear in what is wanted, so that a second solution with the
same factor says what to change for it, and any share of that can be taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_STRENGTH = 0.1  # of the penalty, in units of the mean energy of a neuron that counts


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

    def moved(self, change: Output, step: float) -> Output:
        """This output, and a share of another one on top."""
        pairs = (self.w_out.float(), change.w_out), (self.b_out, change.b_out), (self.constant, change.constant)
        return Output(*(own + step * more for own, more in pairs))


def refitted(
    before: Output,
    hidden: Iterable[Tensor],
    chosen: Tensor,
    owner: Tensor,
    whole: Tensor,
    drift: Tensor | None = None,
) -> tuple[Output, Output | None]:
    """The output that is nearest to the dense network's, a penalty on the change of the last matrix included; and what
    is to be added to it, wholly or in part, so that the drift is taken back.

    Args:
        before: what it is fitted from. hidden: `[T, I]`, block by block. chosen: `[T, E]`. owner: `[I]`.
        whole: the dense network's last matrix `[H, I]`: its output is what is wanted.
        drift: `[T, H]`, the untouched model's stream less the one that the dense network would make here.
    """
    (tokens, count), (width, size), at = chosen.shape, whole.shape, 0
    both = width if drift is None else 2 * width
    moments, cross = torch.zeros(size + count, size + count), torch.zeros(size + count, both)
    mean, middle = torch.zeros(size + count), torch.zeros(both)
    for block in hidden:
        rows, picked = block.float(), chosen[at : at + len(block)]
        seen = torch.cat([rows * picked[:, owner], picked.float()], 1)
        wanted = rows @ whole.float().T - before(rows, picked, owner)
        if drift is not None:
            wanted = torch.cat([wanted, drift[at : at + len(rows)]], 1)
        moments.addmm_(seen.T, seen)
        cross.addmm_(seen.T, wanted)
        mean += seen.sum(0) / tokens
        middle += wanted.sum(0) / tokens
        at += len(rows)
    moments.addr_(mean, mean, alpha=-tokens)
    cross.addr_(mean, middle, alpha=-tokens)
    energy = float(moments.diagonal()[:size].mean())
    moments.diagonal().add_(max(_STRENGTH * energy, 1e-12))
    factor, failed = torch.linalg.cholesky_ex(moments)
    del moments  # as large as the network itself
    if int(failed):  # nothing to go by
        return before, None
    change = torch.cholesky_solve(cross, factor)
    constant = middle - mean @ change
    own, *more = (
        Output(change[:size, part].T, change[size:, part], constant[part])
        for part in (slice(0, width), slice(width, both))[: both // width]
    )
    return before.moved(own, 1.0), more[0] if more else None
