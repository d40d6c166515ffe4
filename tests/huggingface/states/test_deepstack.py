"""Rows of images that Qwen3-VL's decoder adds to its first layers go from part to part."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moec.huggingface.states.deepstack import adding, levels
from moec.huggingface.states.vision_language_call import embedding_call, untouched_embedding_call, vision_call
from tests.vision_language import build

GRID = torch.tensor([[1, 4, 6]])


@pytest.fixture(scope="module")
def model() -> Any:
    return build("qwen3-vl-moe")


def test_the_embedding_hands_on_what_the_model_hands_its_decoder(model: Any) -> None:
    image = {"pixel_values": torch.randn(24, 384), "image_grid_thw": GRID}
    ids = torch.tensor([[5, *[250] * 6, 7]])
    with torch.no_grad():
        rows = vision_call(model, {"image_grid_thw": GRID})(pixel_values=image["pixel_values"])
        assert list(rows) == ["image_features", "deepstack_features.0"] and levels(model) == 1
        want = untouched_embedding_call(model, image)(input_ids=ids, **rows)
        got = embedding_call(model)(input_ids=ids, **rows)
    assert list(got) == list(want) == ["inputs_embeds", "deepstack_embeds.0"]
    assert all(got[name].equal(want[name]) for name in want)
    assert float(got["deepstack_embeds.0"][0, 1:7].abs().min(-1).values.max()) > 0
    assert not bool(got["deepstack_embeds.0"][0, [0, 7]].any())


def test_a_decoder_adds_them_in_both_forms(model: Any) -> None:
    vectors, more = torch.randn(1, 8, 64), torch.randn(1, 8, 64)
    found = []
    for captured in (False, True):
        with torch.no_grad(), adding(model.get_decoder(), [more], captured):
            found.append(model(inputs_embeds=vectors).logits)
    with torch.no_grad():
        without = model(inputs_embeds=vectors).logits
    assert torch.allclose(*found, rtol=1e-5, atol=1e-6) and not torch.allclose(found[0], without, atol=1e-2)
    assert "_deepstack_process" not in vars(model.get_decoder()), "the model is as it was"
