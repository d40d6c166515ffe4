"""Inputs of images and sounds, as two runs of a processor show them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from moec.compiler.open import open_source
from moec.frontend.domain import Domain
from moec.huggingface.inputs.media import Found, runs
from tests.seen_and_heard import SEEN, VISION_LANGUAGE

pytest.importorskip("PIL", reason="processors of images draw with Pillow")


@pytest.mark.parametrize("name", SEEN)
def test_what_differs_between_runs_is_dynamic_and_every_tensor_is_an_input_or_named(name: str, tmp_path: Path) -> None:
    SEEN[name].save(tmp_path)
    source = open_source(str(tmp_path))
    assert {i.name: i.shape for i in source.inputs} == SEEN[name].shapes
    assert all(x.why for x in source.account().left_out)


def test_what_a_grid_says_is_told_from_tokens_and_masks(tmp_path: Path) -> None:
    VISION_LANGUAGE.save(tmp_path)
    source = open_source(str(tmp_path), leave_out=["input_ids"])
    assert {i.name: i.shape for i in source.inputs} == VISION_LANGUAGE.shapes


def test_a_detector_of_any_size_keeps_it_though_its_config_names_one(tmp_path: Path) -> None:
    SEEN["yolos"].save(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert open_source(str(tmp_path)).inputs[0].shape == ("batch", 3, 64, 96)  # all that the config says


def test_masks_of_samples_are_shorter_by_what_a_model_can_hear(tmp_path: Path) -> None:
    SEEN["wav2vec2"].save(tmp_path)
    source = open_source(str(tmp_path))
    mask = source.sample({"batch": 3, "samples": 2000})["attention_mask"]
    assert mask.sum(-1).tolist() == [2000, 1680, 1360] and source.scale == {"samples": 320}


def test_images_of_a_batch_are_padded_below_and_on_the_right(tmp_path: Path) -> None:
    SEEN["detr"].save(tmp_path)
    mask = open_source(str(tmp_path)).sample({"batch": 2, "height": 40, "width": 50})["pixel_mask"]
    assert torch.equal(mask[0], torch.ones_like(mask[0]))
    assert mask[1, :32, :42].all() and not mask[1, 32:].any() and not mask[1, :, 42:].any()


def test_whisper_that_writes_text_stays_in_two_parts_beside_its_processor(tmp_path: Path) -> None:
    transformers.WhisperForConditionalGeneration(SEEN["whisper"].save(tmp_path).config).save_pretrained(tmp_path)
    source = open_source(str(tmp_path))
    assert [i.name for i in source.inputs] == ["input_features", "decoder_input_ids"]
    assert list(source.parts()) == ["encoder", "decoder"]


class Reads(torch.nn.Module):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values[..., : int(pixel_values.sum() > 0)]


class Mixes(torch.nn.Module):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values + torch.ones(pixel_values.shape)


class RefusesOddSizes(torch.nn.Module):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        raise ValueError("this image's metadata name another size")


@pytest.mark.parametrize(("model", "loosely"), [(Reads(), True), (Mixes(), True), (RefusesOddSizes(), False)])
def test_a_model_that_asks_for_values_is_told_from_one_that_takes_no_such_size(
    model: torch.nn.Module, loosely: bool
) -> None:
    found: Found = {"pixel_values": (Domain("number"), torch.float32, ("batch", 3, "height", "width"))}
    assert runs(model, found) is loosely and not runs(model, found, strict=True)
