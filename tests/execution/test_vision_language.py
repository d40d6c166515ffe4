"""Three parts as one engine: texts beside images, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import moec
from moec import MoecError
from moec.execution.parts import respond
from moec.execution.vision_language import VisionLanguageEngine
from tests.vision_language import IMAGE, PIXELS, build, prompts

pytest.importorskip("PIL", reason="processors of images draw with Pillow")


@pytest.fixture(scope="module")
def engine(seeing_engine: Path) -> VisionLanguageEngine:
    found = moec.load(seeing_engine)
    assert isinstance(found, VisionLanguageEngine)
    return found


def _pixels(seed: int) -> Tensor:
    return torch.randn(2, *PIXELS, generator=torch.Generator().manual_seed(seed))


def _written(engine: VisionLanguageEngine, seed: int) -> list[list[int]]:
    given = prompts(IMAGE, 4)
    beside = {"pixel_values": _pixels(seed), "attention_mask": given["attention_mask"]}
    return torch.stack(list(respond(engine, beside, given["input_ids"], max_tokens=8)), 1).tolist()


def test_two_texts_in_turns_do_not_meet(engine: VisionLanguageEngine) -> None:
    alone, given = [_written(engine, 1), _written(engine, 2)], prompts(IMAGE, 4)
    both = (
        respond(engine, {"pixel_values": _pixels(n), "attention_mask": given["attention_mask"]}, given["input_ids"],
                max_tokens=8)
        for n in (1, 2)
    )  # fmt: skip
    first, second = (torch.stack(tokens, 1).tolist() for tokens in zip(*zip(*both, strict=True), strict=True))
    assert [first, second] == alone and first != second


def test_each_call_takes_images_or_none(engine: VisionLanguageEngine) -> None:
    ids, model = torch.tensor([[5, IMAGE, IMAGE, IMAGE, IMAGE, 9]]), build("llava")
    for given in ({"input_ids": ids, "pixel_values": _pixels(1)[:1]}, {"input_ids": ids[:, -1:]}):
        with torch.no_grad():
            want = model(**given).logits
        assert float((engine(**given)["logits"] - want).abs().max()) < 1e-4 * float(want.std())


def test_a_model_may_write_the_token_of_an_image_itself(engine: VisionLanguageEngine) -> None:
    text, ids = engine.text({}), torch.tensor([[5, 7, 9]])
    text.advance(ids)
    got = text.advance(torch.tensor([[IMAGE]]))["logits"]
    model = build("llava")
    with torch.no_grad():
        want = model(input_ids=torch.cat([ids, torch.tensor([[IMAGE]])], 1)).logits[:, -1:]
    assert float((got - want).abs().max()) < 1e-4 * float(want.std())


@pytest.mark.parametrize("places", [3, 5, 0])
def test_images_and_their_places_have_to_be_as_many(engine: VisionLanguageEngine, places: int) -> None:
    ids = torch.tensor([[5, *[IMAGE] * places, 9]])
    with pytest.raises(MoecError) as error:
        engine(input_ids=ids, pixel_values=_pixels(1)[:1])
    assert error.value.code == "M211" and f"{places} places" in error.value.what and str(IMAGE) in error.value.fix


def test_images_without_text_are_refused(engine: VisionLanguageEngine) -> None:
    with pytest.raises(MoecError) as error:
        engine(pixel_values=_pixels(1))
    assert error.value.code == "M211" and "input_ids" in error.value.what


def test_sizes_are_those_of_all_parts(engine: VisionLanguageEngine) -> None:
    assert engine.holds({"batch": 2, "sequence": 40, "images": 3})
