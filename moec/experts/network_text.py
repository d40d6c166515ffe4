"""What a text brings to a network, and what the network's neurons make of it.

All neurons of all tokens are gigabytes where a network is wide, so they are looked at block by block, as often as they
are needed; few are kept. Most of the text is there to fit to, the rest of it judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from moec.experts.dense_network import Dense, token_blocks

MOST_TOKENS = 16384  # that a layer is fitted to; more change little
_HELD_OUT = 8  # one part in so many, the last one, judges what the others made
_PROFILED = 2048  # tokens by which neurons are compared with each other
_KEPT = 2**26  # numbers: so many hidden values are not computed again


class TextPart:
    """Tokens at a network.

    Args:
        dense: the network. x: `[T, H]` float32, what it reads.
        drift: `[T, H]` float32, what the stream behind it lacks of the untouched model's; None where that is not known.
    """

    def __init__(self, dense: Dense, x: Tensor, drift: Tensor | None) -> None:
        self.dense, self.x, self.drift = dense, x, drift
        self._kept = list[Tensor]()

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Some tokens after others, and what the activation gives for them, `[tokens, I]` float32."""
        parts = [*token_blocks(len(self.x))]
        if self._kept:
            yield from zip(parts, self._kept, strict=True)
            return
        small, made = len(self.x) * self.dense.w_out.shape[1] <= _KEPT, list[Tensor]()
        for part in parts:
            hidden = self.dense.hidden(self.x[part]).float()
            made += [hidden] * small
            yield part, hidden
        self._kept = made

    def hidden(self) -> Iterator[Tensor]:
        """What the activation gives, block by block."""
        return (hidden for _, hidden in self.blocks())

    @cached_property
    def says(self) -> Tensor:
        """What the network says, `[T, H]` float32."""
        return torch.cat([hidden @ self.dense.w_out.float().T for hidden in self.hidden()])

    @property
    def wanted(self) -> Tensor:
        """What would have to be said for the stream to be the untouched model's, `[T, H]`; where that is not known,
        what the network says."""
        return self.says if self.drift is None else self.says + self.drift


class NetworkText:
    """A text at a network, in the text's order.

    Args:
        dense: the network. x: `[T, H]`, what it reads. drift: `[T, H]` or None, see `TextPart`.
    """

    def __init__(self, dense: Dense, x: Tensor, drift: Tensor | None = None) -> None:
        self.dense = dense
        every = stride(len(x))
        x, drift = x[::every].float(), None if drift is None else drift[::every].float()
        fitted = len(x) - len(x) // _HELD_OUT
        self.fitted, self.judged = (
            TextPart(dense, x[part], None if drift is None else drift[part])
            for part in (slice(0, fitted), slice(fitted, None))
        )

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the hidden values that are fitted to, `[I]` float32; blocks are put together in double
        precision, as Chan, Golub and LeVeque do."""
        size = self.dense.w_out.shape[1]
        mean, squares, seen = torch.zeros(size).double(), torch.zeros(size).double(), 0
        for hidden in self.fitted.hidden():
            own, middle = torch.var_mean(hidden, 0, correction=0)
            count, away = len(hidden), middle.double() - mean
            mean += away * (count / (seen + count))
            squares += own.double() * count + away.square() * (seen * count / (seen + count))
            seen += count
        return mean.float(), (squares / max(1, seen)).float()

    @property
    def mean(self) -> Tensor:
        """Of each neuron, `[I]`."""
        return self._moments[0]

    @property
    def variance(self) -> Tensor:
        """Of each neuron, `[I]`."""
        return self._moments[1]

    @property
    def profile(self) -> Tensor:
        """Some of the tokens that are fitted to, by which neurons are compared with each other: what the network reads,
        `[P, H]`."""
        return self.fitted.x[:: -(-len(self.fitted.x) // _PROFILED)]

    @cached_property
    def profiled(self) -> Tensor:
        """What the activation gives for these, `[P, I]`."""
        return torch.cat([self.dense.hidden(self.profile[part]).float() for part in token_blocks(len(self.profile))])


def stride(count: int) -> int:
    """Every how many of so many tokens are taken."""
    return max(1, -(-count // MOST_TOKENS))
