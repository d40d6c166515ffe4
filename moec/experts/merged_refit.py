"""The last matrix of a fine-tune's network, fitted anew to the tokens that a merged model sends there.

What exists once and routers' mistakes move the residual stream away from what each fine-tune makes of its own text. An
expert takes a part of that back: ridge regression on what the stream lacks, for the tokens that the expert gets, of
whichever text they are. A norm follows, so that a token counts by the inverse of its stream's mean square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moec.experts.dense_network import Dense, dense_of, in_float32, token_blocks
from moec.experts.stream_step import Step, best_step
from moec.recognition.ffn import Ffn

_STRENGTH = 1.0  # of the penalty on the change, in units of a neuron's mean energy
_LEAST = 0.1  # of the median size, which a token counts as having


@dataclass(frozen=True)
class Arriving:
    """Tokens of all texts at a place.

    Attributes:
        x: `[T, H]`, what the network reads. streams: `[T, H]`, behind the network of the text's own fine-tune.
        wanted: `[T, H]`, what a network has to say so that the merged model's stream is that.
        judges: bool `[T]`, whether a token is held out.
    """

    x: Tensor
    streams: Tensor
    wanted: Tensor
    judges: Tensor

    def of(self, chosen: Tensor) -> Arriving:
        """The tokens that are chosen, bool `[T]`."""
        return Arriving(*(value[chosen] for value in (self.x, self.streams, self.wanted, self.judges)))


def judges_of(parts: Sequence[Tensor]) -> Tensor:
    """Which tokens judge, bool `[T]`, of parts `[T, H]` that are to fit on and to judge in turns."""
    return torch.cat([torch.full((len(x),), bool(k % 2)) for k, x in enumerate(parts)])


def refitted_expert(ffn: Ffn, own: Arriving) -> tuple[Tensor, Step]:
    """The network's last matrix `[H, I]` in its dtype, fitted to the tokens that it gets, and how far it went."""
    dense = dense_of(ffn)
    says = dense(own.x)
    says = says if ffn.b_out is None else says + in_float32(ffn.b_out)
    lacking = own.wanted - says
    counts = 1 / _sizes(own.streams)
    fits, judges = ~own.judges, own.judges
    change = _solved(dense, own.x[fits], lacking[fits], counts[fits])
    root = counts[judges].sqrt()
    back = dense(own.x[judges], change)
    step = best_step(root * lacking[judges], root * back, root * says[judges])
    return (dense.w_out + step.taken * change if step.taken else dense.w_out).to(ffn.w_out.dtype), step


def _sizes(streams: Tensor) -> Tensor:
    """The mean square of each token's stream `[T, 1]`; a token of next to nothing (padding) counts at most ten times
    as much as the median one."""
    sizes = streams.square().mean(1, keepdim=True)
    least = _LEAST * float(sizes.median()) if len(sizes) else 0.0
    return sizes.clamp(min=max(least, torch.finfo(torch.float32).tiny))


def _solved(dense: Dense, x: Tensor, lacking: Tensor, counts: Tensor) -> Tensor:
    """What to add to the last matrix, `[H, I]`; nothing where no token tells."""
    rows, columns = dense.w_out.shape
    moments, cross = torch.zeros(columns, columns), torch.zeros(columns, rows)
    counts = counts / counts.mean() if len(counts) else counts
    for part in token_blocks(len(x)):
        hidden = dense.hidden(x[part]).float()
        moments.addmm_((hidden * counts[part]).T, hidden)
        cross.addmm_((hidden * counts[part]).T, lacking[part])
    moments.diagonal().add_(max(_STRENGTH * float(moments.diagonal().mean()), 1e-12))
    factor, failed = torch.linalg.cholesky_ex(moments)
    del moments  # as large as the network itself
    if int(failed):  # nothing to go by
        return torch.zeros(rows, columns)
    return torch.cholesky_solve(cross, factor).T
