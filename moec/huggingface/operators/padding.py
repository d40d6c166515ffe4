"""Where a captured call of a decoder has padding, and where the windows of its texts end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = "moec_padding"  # an attribute of a module that keeps states: the `Padding` of a captured call


@dataclass(frozen=True)
class Padding:
    """Where a call has padding.

    Attributes:
        counts: `[B, S]`, bool: which tokens change a state: those that are no padding, and what stands before the first
            of them in a call that begins a text, which untouched models take for tokens.
        ends: `[B]` int64: how many of them there are up to the last that counts.
    """

    counts: Tensor
    ends: Tensor

    @classmethod
    def of(cls, mask: Tensor, length: int) -> Padding:
        """Of a call's last `length` tokens, from the mask `[B, T]` of the whole text."""
        begins = torch.arange(mask.shape[1] - length, mask.shape[1], device=mask.device)[:1] == 0
        counts = mask[:, -length:].bool() | (begins & (mask.cumsum(-1)[:, -length:] == 0))
        return cls(counts, ends_of(counts))


def ends_of(counts: Tensor) -> Tensor:
    """How many of a call's tokens there are up to the last that counts, `[batch]` int64 of `[batch, sequence]`."""
    return (counts * torch.arange(1, counts.shape[1] + 1, device=counts.device)).amax(-1)


def behind(whole: Tensor, width: int, ends: Tensor | None) -> Tensor:
    """The last `width` columns of `[batch, channels, width + sequence]`, or those before each text's end."""
    if ends is None:
        return whole[..., -width:]
    columns = ends[:, None, None] + torch.arange(width, device=whole.device)
    return whole.gather(2, columns.expand(-1, whole.shape[1], -1))
