"""The parts of models of text and images, in eager PyTorch, are the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moec.huggingface.states.vision_language_call import (
    embedding_call,
    image_token,
    merged,
    owner_of,
    untouched_embedding_call,
    vision_call,
    whole_call,
)
from tests.vision_language import build

SHAPES = {"llava": (2, 3, 16, 16), "llama4": (2, 3, 32, 32)}


def _close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-5 * float(b.std())


def _ids(token: int, each: int) -> Tensor:
    ids = torch.randint(3, token, (2, 9), generator=torch.Generator().manual_seed(1))
    ids[0, 1 : 1 + each], ids[1, 3 : 3 + each] = token, token
    return ids


@pytest.mark.parametrize("name", SHAPES)
def test_parts_say_together_what_the_model_says(name: str) -> None:
    model: Any = build(name)
    pixels, token = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(2)), image_token(model)
    with torch.no_grad():
        rows = vision_call(model)(pixel_values=pixels)["image_features"]
        ids = _ids(token, len(rows) // 2)
        want = whole_call(model)(input_ids=ids, pixel_values=pixels)["logits"]
        vectors = embedding_call(model)(input_ids=ids, image_features=rows)["inputs_embeds"]
        assert _close(model(inputs_embeds=vectors).logits, want)
        assert not _close(model(inputs_embeds=vectors.flip(0)).logits.flip(0), want.flip(0))
        other = embedding_call(model)(input_ids=ids, image_features=rows.flip(0))["inputs_embeds"]
        assert not _close(model(inputs_embeds=other).logits, want)


@pytest.mark.parametrize("name", SHAPES)
def test_the_embedding_is_what_the_models_own_forward_hands_its_decoder(name: str) -> None:
    model: Any = build(name)
    image, token = {"pixel_values": torch.zeros(1, *SHAPES[name][1:])}, image_token(model)
    rows = torch.randn(8, model.config.get_text_config().hidden_size)
    ours, untouched = embedding_call(model), untouched_embedding_call(model, image)
    with torch.no_grad():
        for ids, given in ((_ids(token, 4), rows), (_ids(token, 0), rows[:0])):
            want = untouched(input_ids=ids, image_features=given)["inputs_embeds"]
            assert ours(input_ids=ids, image_features=given)["inputs_embeds"].equal(want)
        assert not ours(input_ids=_ids(token, 4), image_features=-rows)["inputs_embeds"].equal(want)
        with pytest.raises(ValueError, match="do not match"):
            untouched(input_ids=_ids(token, 3), image_features=rows)
    assert "get_placeholder_mask" not in vars(owner_of(model)), "the model is as it was"


def test_a_place_without_a_row_is_left_as_it_is() -> None:
    vectors, places = torch.ones(1, 3, 2), torch.tensor([[True, False, True]])
    assert merged(vectors, places, torch.zeros(1, 2))[0, :, 0].tolist() == [0, 1, 1]
    assert merged(vectors, places, torch.zeros(0, 2)).equal(vectors)
