"""A model of text and images becomes three graphs beside each other, proven alone and together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import moec
from moec import MoecError
from moec.execution.parts import respond
from moec.execution.vision_language import VisionLanguageEngine
from moec.proof.checks.cache import CacheConsistency
from moec.proof.checks.proven_parts import ProvenParts
from moec.proof.checks.sight import Sight
from tests import vision_language
from tests.command_line import Cli
from tests.vision_language import IMAGE, PIXELS, VIDEOS, build, generated, prompts

pytest.importorskip("PIL", reason="processors of images draw with Pillow")
PARTS = ["vision", "embedding", "decoder"]


def loaded(folder: Path) -> VisionLanguageEngine:
    engine = moec.load(folder)
    assert isinstance(engine, VisionLanguageEngine)
    return engine


def test_the_graphs_lie_beside_each_other_and_each_part_is_an_engine(seeing_engine: Path) -> None:
    files = {p.relative_to(seeing_engine).as_posix() for p in seeing_engine.rglob("*") if p.is_file()}
    assert {*(f"{part}.onnx" for part in PARTS), *(f"{part}/moec.json" for part in PARTS)} <= files
    assert {"genai_config.json", "preprocessor_config.json", "config.json"} <= files
    assert [name for name in sorted(files) if name.endswith(".data")] == [
        f"{part}/model.onnx.data" for part in sorted(PARTS)
    ]
    vision, embedding, decoder = (moec.load(seeing_engine / part) for part in PARTS)
    assert vision.outputs == ("image_features",) and embedding.outputs == ("inputs_embeds",)
    assert [i.name for i in decoder.inputs][:2] == ["inputs_embeds", "attention_mask"]


def test_the_manifest_says_what_was_proven_and_which_inputs_there_are(seeing_engine: Path) -> None:
    report = moec.api.read_report(seeing_engine)
    parts, cache, sight = (report.proof.find(kind) for kind in (ProvenParts, CacheConsistency, Sight))
    assert report.ok and parts is not None and [p.part for p in parts.parts] == PARTS
    assert cache is not None and len(cache.consistency.ways) == 3 and sight is not None and sight.moved > 0.1
    assert report.comparison.samples == 7 and [o.name for o in report.comparison.outputs] == ["logits"]
    assert report.account["inputs"] == ["input_ids", "attention_mask", "pixel_values"]
    why = {x["name"]: x["why"] for x in report.account["left_out"]}
    assert why["image_sizes"] == "CLIPImageProcessorPil does not make it" and all(why.values())
    assert moec.api.read_report(seeing_engine / "vision").account["inputs"] == ["pixel_values"]


def test_texts_are_what_generate_writes(seeing_engine: Path) -> None:
    model, engine, given = build("llava"), loaded(seeing_engine), prompts(IMAGE, 4)
    pixels = torch.randn(2, *PIXELS, generator=torch.Generator().manual_seed(4))
    texts = []
    for images in (pixels, pixels.flip(0)):
        want = generated(model, 16, **given, pixel_values=images)
        beside = {"pixel_values": images, "attention_mask": given["attention_mask"]}
        texts.append(torch.stack(list(respond(engine, beside, given["input_ids"], max_tokens=16)), 1))
        assert texts[-1].equal(want)
    assert not texts[0].equal(texts[1]) and len(texts[0].unique()) > 3


def test_a_text_without_images_too(seeing_engine: Path, cli: Cli) -> None:
    ids = torch.tensor([[5, 6, 7]])
    want = generated(build("llava"), 8, input_ids=ids, attention_mask=torch.ones_like(ids))
    found = cli.json("run", seeing_engine, "--tokens", "5,6,7", "--max-tokens", "8")
    assert found["tokens"] == want[0, : len(found["tokens"])].tolist() and found["tokens"]


@pytest.mark.parametrize(
    ("options", "code", "way_out"),
    [
        ({"layout": "triton"}, "M208", "--layout plain"),
        ({"target": "tensorrt-rtx", "build": False}, "M208", "--leave-out 'pixel_values*'"),
        ({"save_hf": "elsewhere"}, "M201", "--part"),
        ({"part": "encoder"}, "M201", "vision, embedding, decoder"),
    ],
)
def test_what_three_graphs_do_not_go_with_is_refused(
    options: dict[str, Any], code: str, way_out: str, seeing: Path, tmp_path: Path
) -> None:
    with pytest.raises(MoecError) as error:
        moec.compile(str(seeing), out=tmp_path / "engine", **options)
    assert error.value.code == code and way_out in error.value.fix and not (tmp_path / "engine").exists()


def test_the_way_out_compiles_it_for_text_alone(seeing: Path, seeing_engine: Path) -> None:
    alone = moec.open_source(str(seeing), leave_out=["pixel_values*"])
    assert not alone.parts() and [i.name for i in alone.inputs][:2] == ["input_ids", "attention_mask"]
    with pytest.raises(MoecError) as error:
        moec.api.bisect(seeing_engine)
    assert error.value.code == "M201" and "ENGINE/decoder" in error.value.fix


@pytest.mark.repeats
def test_it_is_proven_again_on_other_inputs(seeing_engine: Path) -> None:
    proof = moec.verify(seeing_engine, seed=5)
    assert proof.ok and proof.find(Sight) is not None and proof.seed == 5


@pytest.mark.repeats
@pytest.mark.parametrize("name", ["llama4", "qwen3-vl-moe", "glm4v-moe"])
def test_other_families(name: str, tmp_path: Path) -> None:
    model, folder, out = build(name), vision_language.save(name, tmp_path / "model"), tmp_path / "engine"
    grids = torch.tensor([[1, 4, 6], [1, 6, 4]])
    gridded = {} if name == "llama4" else {"image_grid_thw": grids}
    inputs = [f"image_grid_thw={grids.tolist()}", "pixel_values=48,384:float32"] if gridded else None
    moec.compile(str(folder), out=out, inputs=inputs, leave_out=[VIDEOS] if gridded else [])
    engine, shape = loaded(out), (48, 384) if gridded else (2, 3, 32, 32)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    given = prompts(250, 6 if gridded else 4)
    kinds = {"mm_token_type_ids": (given["input_ids"] == 250).int()} if gridded else {}
    want = generated(model, 16, **given, pixel_values=pixels, **gridded, **kinds)
    beside = {"pixel_values": pixels, "attention_mask": given["attention_mask"]}
    got = torch.stack(list(respond(engine, beside, given["input_ids"], max_tokens=16)), 1)
    assert got.equal(want) and len(got.unique()) > 3
    assert moec.verify(out, seed=3).ok
