"""Places of tokens in time, height and width, where an image stands among them as a grid (M-RoPE of Qwen2-VL,
https://arxiv.org/abs/2409.12191): tokens beside images count one by one, an image by its longer side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def grid_positions(ids: Tensor, mask: Tensor, image_token: int, grids: Sequence[Sequence[int]], merge: int) -> Tensor:
    """Places of a prompt's tokens.

    Args:
        ids: `[batch, sequence]` int64. mask: `[batch, sequence]`, 0 where there is padding, whose places are 0.
        image_token: the token that stands for a part of an image.
        grids: (time, height, width) of the images, in the order in which they come, row by row; in patches, of which
            `merge` by `merge` are one token.

    Returns:
        `[3, batch, sequence]` int64: time, height, width.
    """
    offsets, steps = _of_images(grids, merge)
    places = (ids == image_token) & mask.bool()
    numbers = (places.reshape(-1).cumsum(0) * places.reshape(-1)).view(ids.shape)
    numbers = torch.where(numbers < len(steps), numbers, 0)
    step = torch.where(numbers > 0, steps[numbers], 1) * mask
    found = (step.cumsum(-1) - step)[None] + offsets[:, numbers]
    return torch.where(mask.bool(), found, 0)


def _of_images(grids: Sequence[Sequence[int]], merge: int) -> tuple[Tensor, Tensor]:
    """For each token of an image, from 1: its place in the image `[3, tokens + 1]`, and by how much what follows it is
    further on `[tokens + 1]`; 0 stands for no such token."""
    offsets, steps = [torch.zeros(3, 1, dtype=torch.int64)], [torch.zeros(1, dtype=torch.int64)]
    for time, height, width in grids:
        axes = [torch.arange(n) for n in (time, height // merge, width // merge)]
        offsets.append(torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, -1))
        step = torch.zeros(offsets[-1].shape[1], dtype=torch.int64)
        step[-1] = max(height, width) // merge
        steps.append(step)
    return torch.cat(offsets, 1), torch.cat(steps)
