"""Places in time, height and width are those that transformers finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moec.execution.grid_positions import grid_positions
from tests.seen_and_heard import VISION_LANGUAGE, glm4v_moe

IMAGE, GRIDS = 250, [[1, 4, 6], [1, 6, 2], [1, 2, 2]]  # 6, 3 and 1 tokens


def _texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts: two images; one of another form behind padding; none, with padding on the right."""
    ids = torch.full((3, 16), 5)
    ids[0, 2:8], ids[0, 10:13], ids[1, 9:10] = IMAGE, IMAGE, IMAGE
    mask = torch.ones_like(ids)
    mask[1, :3], mask[2, 11:] = 0, 0
    return ids, mask


@pytest.mark.parametrize("make", [VISION_LANGUAGE.model, glm4v_moe])
def test_they_are_the_models_own(make: Callable[[], Any]) -> None:
    ids, mask = _texts()
    with torch.device("meta"):
        model = make().model
    kinds = (ids == IMAGE).int()
    want = model.get_rope_index(ids, kinds, image_grid_thw=torch.tensor(GRIDS), attention_mask=mask)[0]
    assert grid_positions(ids, mask, IMAGE, GRIDS, 2).equal(want)
    assert not grid_positions(ids, mask, IMAGE, [[g[0], g[2], g[1]] for g in GRIDS], 2).equal(want)


def test_without_images_tokens_are_counted() -> None:
    ids, mask = _texts()
    ids = torch.where(ids == IMAGE, 5, ids)
    counted = (mask.cumsum(-1) - 1).clamp(min=0) * mask
    assert grid_positions(ids, mask, IMAGE, GRIDS, 2).equal(counted.expand(3, -1, -1))
