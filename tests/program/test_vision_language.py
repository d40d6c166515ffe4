"""Which tensors have a row for each token of an image."""

from __future__ import annotations

import torch

from moec.program.signature import Input
from moec.program.vision_language import image_rows


def test_rows_of_images_are_told_by_name() -> None:
    names = ("input_ids", "image_features", "deepstack_features.0", "deepstack_embeds.0")
    inputs = [Input(name, torch.float32, ("n", 4)) for name in names]
    assert [i.name for i in image_rows(inputs)] == ["image_features", "deepstack_features.0"]
