"""Models that see or hear, compiled from a folder with their processor, against untouched eager at other sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import moec
from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.frontend.from_exported import named_outputs
from moec.huggingface.source import HuggingFaceSource
from tests.reported import spread
from tests.seen_and_heard import EYES, SEEN, VISION_LANGUAGE

pytest.importorskip("PIL", reason="processors of images draw with Pillow")
SIZES = (
    {"batch": 2, "images": 4, "sequence": 9, "height": 64, "width": 90, "samples": 1501, "frames": 50},
    {"batch": 3, "images": 2, "sequence": 21, "height": 97, "width": 128, "samples": 4000, "frames": 77},
)
FAST = ("ast",)
CASES = [name if name in FAST else pytest.param(name, marks=pytest.mark.repeats) for name in SEEN]
TOLERANCE = 1e-4  # max |d| / std, float32


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    alike = [name for name in found if name in wanted and wanted[name].numel() > 1]
    assert alike
    return max(float((found[n] - wanted[n]).abs().max() / wanted[n].std()) for n in alike)


@pytest.mark.parametrize("name", CASES)
def test_an_engine_equals_eager_at_other_sizes(name: str, tmp_path: Path, cli: Any) -> None:
    model = SEEN[name].save(tmp_path / "model")
    cli("compile", str(tmp_path / "model"), "-o", str(tmp_path / "engine"))
    engine, source = moec.load(tmp_path / "engine"), open_source(str(tmp_path / "model"))
    assert {i.name: i.shape for i in engine.inputs} == SEEN[name].shapes
    for seed, sizes in enumerate(SIZES):
        inputs = source.sample(sizes, seed)
        with torch.no_grad():
            wanted = named_outputs(model(**inputs))
        found = engine(**inputs)
        assert difference(found, wanted) < TOLERANCE
        other = {n: -v if v.is_floating_point() else v for n, v in inputs.items()}
        assert difference(engine(**other), wanted) > TOLERANCE  # it hears, and sees


@pytest.fixture(scope="module")
def many_eyed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("vl") / "model"
    return folder, VISION_LANGUAGE.save(folder)


@pytest.mark.repeats
def test_what_an_image_is_to_the_decoder_compiles_at_a_grid_that_is_given(
    many_eyed: tuple[Path, Any], tmp_path: Path, cli: Any
) -> None:
    grid, shape = "image_grid_thw=[[1,4,6]]", "pixel_values=24,384:float32"
    out = tmp_path / "eye"
    flags = ["--leave-out", "input_ids", "--input", grid, "--input", shape]
    cli("compile", str(many_eyed[0]), "-o", str(out), *flags)
    pixels = torch.randn(24, 384, generator=torch.Generator().manual_seed(3))
    model = many_eyed[1]
    with torch.no_grad():
        wanted, other = (model.get_image_features(pixels, torch.tensor([[1, *g]])) for g in ((4, 6), (6, 4)))
    found = moec.load(out)(pixel_values=pixels)
    assert difference(found, {"pooler_output_0": wanted.pooler_output[0]}) < TOLERANCE
    assert difference(found, {"deepstack_features_0_0": wanted.deepstack_features[0][0]}) < TOLERANCE
    assert difference(found, {"pooler_output_0": other.pooler_output[0]}) > TOLERANCE
    left_out = json.loads((out / "moec.json").read_text())["account"]["left_out"]
    assert {"image_grid_thw": "it is always [[1, 4, 6]]"}.items() <= {x["name"]: x["why"] for x in left_out}.items()
    cli("verify", str(out))


@pytest.mark.repeats
def test_sizes_that_hang_on_values_are_refused_with_values_that_were_tried(many_eyed: tuple[Path, Any]) -> None:
    source = open_source(str(many_eyed[0]), leave_out=["input_ids"])
    with pytest.raises(MoecError, match="hang on the values of image_grid_thw") as caught:
        source.capture()
    assert caught.value.code == "M207"
    inputs = [part.split("'")[1] for part in caught.value.fix.split("--input ")[1:]]
    tried = open_source(str(many_eyed[0]), leave_out=["input_ids"], inputs=inputs)
    assert tried.capture().run(**tried.sample({}))["pooler_output_1"].shape == (12, 64)


def test_images_beside_text_are_refused_with_both_ways_out(many_eyed: tuple[Path, Any]) -> None:
    with pytest.raises(MoecError, match="pixel_values") as caught:
        open_source(str(many_eyed[0])).account()
    assert caught.value.code == "M216" and "--leave-out input_ids" in caught.value.fix


def test_the_account_says_which_processor_was_run(tmp_path: Path) -> None:
    SEEN["ast"].save(tmp_path)
    source = open_source(str(tmp_path))
    assert isinstance(source, HuggingFaceSource)
    assert "inputs as ASTFeatureExtractor makes them of drawn images and sounds" in source.account().notes


@pytest.mark.repeats
@pytest.mark.parametrize("name", EYES)
def test_features_of_images_equal_eager(name: str, tmp_path: Path) -> None:
    make, shape, values = EYES[name]
    model = spread(make())
    model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    given = [f"{n}={v.tolist()}" for n, v in values.items()]
    sizes = [f"pixel_values={','.join(map(str, shape))}:float32"] if values else []
    moec.compile(
        str(tmp_path / "model"), out=tmp_path / "eye", leave_out=["input_ids"], inputs=[*given, *sizes] or None
    )
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = named_outputs(dict(model.get_image_features(pixels, *values.values())))  # type: ignore[operator]
    found = moec.load(tmp_path / "eye")(pixel_values=pixels)
    assert difference(found, wanted) < TOLERANCE
    assert difference(moec.load(tmp_path / "eye")(pixel_values=-pixels), wanted) > TOLERANCE
