"""Which models are compiled in three parts, what their account says, and the ways out of what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as T

import moec
from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.frontend.source import Source
from moec.huggingface.inputs import asked
from moec.huggingface.inputs.processor import prepared
from moec.huggingface.source import HuggingFaceSource
from moec.huggingface.vision_language import VisionLanguageSource
from tests import vision_language
from tests.reported import SMALL, spread
from tests.seen_and_heard import SEEN, ernie_vl_moe
from tests.vision_language import IMAGE, VIDEOS

pytest.importorskip("PIL", reason="processors of images draw with Pillow")


@pytest.fixture(scope="module")
def gridded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_language.save("qwen3-vl-moe", tmp_path_factory.mktemp("models") / "qwen")


def _why(source: Source) -> dict[str, str]:
    return {x.name: x.why for x in source.account().left_out}


def test_every_input_is_kept_or_named_with_its_reason(seeing: Path) -> None:
    source = open_source(str(seeing))
    assert isinstance(source, VisionLanguageSource) and list(source.parts()) == ["vision", "embedding", "decoder"]
    lines = source.account().lines()
    assert "inputs input_ids, attention_mask, pixel_values;" in lines[0]
    assert "left out: input image_sizes: CLIPImageProcessorPil does not make it" in lines


def test_the_processor_is_run_once_for_the_model_and_its_parts(seeing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    monkeypatch.setattr(asked, "prepared", lambda *given: runs.append(given) or prepared(*given))
    source = open_source(str(seeing))
    names = [i.name for one in (source, *source.parts().values()) for i in one.inputs]
    assert names.count("pixel_values") == 2 and len(runs) == 1


def test_videos_and_grids_are_refused_until_the_user_says_what_of_them(gridded: Path) -> None:
    with pytest.raises(MoecError, match="pixel_values_videos, video_grid_thw") as caught:
        open_source(str(gridded)).account()
    assert caught.value.code == "M216" and f"--leave-out {VIDEOS}" in caught.value.fix
    source = open_source(str(gridded), leave_out=[VIDEOS])
    why = _why(source)
    assert why["mm_token_type_ids"] == "images are found by their token, 250" and "videos" in why["video_grid_thw"]
    with pytest.raises(MoecError, match="hang on the values of image_grid_thw") as caught:
        source.parts()["vision"].capture()
    inputs = [part.split("'")[1] for part in caught.value.fix.split("--input ")[1:]]
    fixed = open_source(str(gridded), leave_out=[VIDEOS], inputs=inputs)
    rows = fixed.parts()["vision"].capture().output_signature()
    assert [o.name for o in rows] == ["image_features", "deepstack_features.0"] and rows[0].shape[1] == 64
    assert _why(fixed)["image_grid_thw"] == "it is always [[1, 6, 8], [1, 6, 8]]"
    decoder = [i.name for i in fixed.parts()["decoder"].inputs]
    assert decoder[:4] == ["inputs_embeds", "attention_mask", "deepstack_embeds.0", "position_ids"]


def test_inputs_that_only_a_model_of_its_own_knows_are_refused() -> None:
    model = ernie_vl_moe()
    with pytest.raises(MoecError, match="moe_mm_token_type_ids") as caught:
        VisionLanguageSource.from_model(model, leave_out=["*video*", "image_grid_thw"]).account()
    assert caught.value.code == "M216"


def test_tokens_of_an_image_that_see_each_other_are_refused() -> None:
    config = T.Gemma3Config(
        text_config={**SMALL, "head_dim": 16}, image_token_index=250, mm_tokens_per_image=4,
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
                       "image_size": 16, "patch_size": 8},
    )  # fmt: skip
    model = T.Gemma3ForConditionalGeneration(config)
    with pytest.raises(MoecError, match="token_type_ids") as caught:
        VisionLanguageSource.from_model(model).account()
    assert caught.value.code == "M216" and "--leave-out token_type_ids" in caught.value.fix
    text = VisionLanguageSource.from_model(model, leave_out=["pixel_values*"])
    assert not text.parts() and "images" in _why(text)["token_type_ids"]


def test_models_that_write_no_text_beside_images_are_one_graph(tmp_path: Path) -> None:
    model = spread(SEEN["clip"].model())
    assert not VisionLanguageSource.from_model(model).parts()
    with pytest.raises(MoecError, match="no part 'vision'") as caught:
        VisionLanguageSource.from_model(model, part="vision")
    assert caught.value.code == "M201"


def test_a_model_that_is_opened_as_a_part_was_has_the_same_part(seeing: Path) -> None:
    part = open_source(str(seeing)).parts()["embedding"]
    assert part.alike(str(seeing)).inputs == part.inputs


def test_the_whole_is_no_graph(seeing: Path) -> None:
    with pytest.raises(MoecError) as caught:
        moec.capture(str(seeing))
    assert caught.value.code == "M201" and "part=.vision" in caught.value.fix.replace("'", ".")


def test_a_decoder_that_cannot_be_captured_is_refused_with_text_alone_as_the_way_out(
    seeing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(seeing)).parts()["embedding"]
    right = HuggingFaceSource._capture

    def failing(self: HuggingFaceSource, *args: Any, **kwargs: Any) -> Any:
        if self is source:
            raise MoecError("M207", "it branches on data", "a line", "change it")
        return right(self, *args, **kwargs)

    monkeypatch.setattr(HuggingFaceSource, "_capture", failing)
    with pytest.raises(MoecError, match="branches on data") as caught:
        source.capture()
    assert "captured just now: --leave-out 'pixel_values*'" in caught.value.fix


def test_samples_have_as_many_places_as_images_have_rows(seeing: Path) -> None:
    source = open_source(str(seeing))
    for batch, images in ((1, 1), (2, 3), (3, 2)):
        sample = source.sample({"batch": batch, "sequence": 7, "images": images}, seed=images)
        assert int((sample["input_ids"] == IMAGE).sum()) == 4 * images == 4 * len(sample["pixel_values"])
        assert not bool(((sample["input_ids"] == IMAGE) & (sample["attention_mask"] == 0)).any())
    embedding = source.parts()["embedding"].sample({"batch": 2, "sequence": 7, "image_tokens": 5})
    assert int((embedding["input_ids"] == IMAGE).sum()) == 5
