"""Places of images in samples, and which models have such."""

from __future__ import annotations

import torch

from moec.huggingface.inputs.seeing import planted, scattered, sees
from tests import zoo
from tests.seen_and_heard import SEEN, llama4


def test_which_models_put_images_in_the_place_of_tokens() -> None:
    assert sees(llama4()) and not sees(SEEN["clip"].model()) and not sees(zoo.build("llama"))


def test_images_have_another_token_behind_them() -> None:
    ids = planted(torch.full((2, 12), 3), 3, [2, 1], 4, seed=1)
    runs = "".join("i" if token == 3 else "t" for token in ids[0].tolist()).split("t")
    assert sorted(run for run in runs if run) == ["iiii", "iiii"] and int((ids[1] == 3).sum()) == 4
    assert int((scattered(torch.zeros(2, 3, dtype=torch.int64), 3, 9, seed=1) == 3).sum()) == 6
