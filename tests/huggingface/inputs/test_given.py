"""Sample inputs that come with a transformers model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.frontend.domain import Domain
from moec.frontend.source import Opening
from moec.huggingface.inputs.given import Given
from tests import zoo

IDS = torch.randint(3, 50, (3, 11))


@pytest.mark.parametrize(
    ("given", "with_cache"),
    [
        (Given({"input_ids": IDS}), True),
        (Given({"input_ids": IDS, "attention_mask": IDS}, {"input_ids": ("rows", "length")}), True),
        (Given({"input_ids": IDS}, {"input_ids": (None, "length")}), False),
        (Given({"attention_mask": IDS}), False),
        (Given({"input_ids": IDS, "position_ids": IDS}), False),
    ],
)
def test_tokens_and_mask_of_any_size_go_with_a_cache(given: Given, with_cache: bool) -> None:
    assert given.goes_with_a_cache is with_cache


def test_what_the_model_knows_of_an_input_is_taken_and_the_rest_guessed() -> None:
    found = Given({"input_ids": IDS, "inputs_embeds": torch.zeros(3, 11, 32)}).signature(zoo.build("bert"))
    assert [(i.name, i.shape) for i in found.inputs] == [
        ("input_ids", ("batch", "sequence")),
        ("inputs_embeds", ("batch", 11, 32)),
    ]
    assert found.domains["input_ids"] == Domain("token", zoo.VOCAB)


def test_dimensions_are_the_users_where_he_names_them() -> None:
    given = Given({"input_ids": IDS[:1]}, {"input_ids": ("rows", "length")})
    found = given.signature(zoo.build("bert"))
    assert found.inputs[0].shape == ("rows", "length") and given.sizes(found.inputs) == {"rows": 2, "length": 11}


def test_texts_say_the_same_as_tensors() -> None:
    assert Given.of(Opening()) is None
    read = Given.of(Opening(inputs=("input_ids=batch,sequence:int64<90",)))
    assert read is not None and read.goes_with_a_cache and read.domains["input_ids"].high == 90
    with pytest.raises(MoecError):
        Given.of(Opening(inputs=("input_ids",)))


def test_values_are_read_as_texts_and_stay(mixtral: Path) -> None:
    given = Given.of(Opening(["token_type_ids=[[0, 1]]", "input_ids=batch,7:int64<9"]))
    assert given is not None and not given.goes_with_a_cache
    assert given.fixed["token_type_ids"].tolist() == [[0, 1]] and list(given.samples) == ["input_ids"]
    for text in ("grid=[[1, 2], [3]]", "grid=[1,", "grid=[]", 'grid=["a"]'):
        with pytest.raises(MoecError, match="cannot read the value") as caught:
            Given.of(Opening([text]))
        assert caught.value.code == "M201"


def test_inputs_of_a_folder_take_the_place_of_its_own(mixtral: Path) -> None:
    source = open_source(str(mixtral), inputs=["input_ids=batch,7:int64<9"])
    assert [(i.name, i.shape) for i in source.inputs] == [
        ("input_ids", ("batch", 7)), ("attention_mask", ("batch", "sequence"))
    ]  # fmt: skip
    with pytest.raises(MoecError, match="takes no tensor 'grid'") as caught:
        open_source(str(mixtral), inputs=["grid=[[1,2]]"])
    assert caught.value.code == "M201" and "input_ids" in caught.value.fix
