"""onnxruntime-genai runs the three graphs of a model of text and images, and writes what transformers writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from moec.layouts import ModelFacts
from moec.layouts.genai_images import refusal
from moec.program.program import Input
from tests.vision_language import IMAGE, PIXELS, build, generated

FACTS = ModelFacts("tiny", "llava", 96, 128, 32, 4, 2, 2, 8, bos=1, eos=(2,), pad=0)
TOKENS = 16


def _inputs() -> dict[str, list[Input]]:
    cache = ("batch", 2, "past_sequence", 8)
    return {
        "vision": [Input("pixel_values", torch.float32, ("images", 3, 16, 16))],
        "embedding": [Input(name, torch.float32, ("image_tokens", 32)) for name in ("input_ids", "image_features")],
        "decoder": [
            Input("inputs_embeds", torch.float32, ("batch", "sequence", 32)),
            Input("attention_mask", torch.int64, ("batch", "past_sequence + sequence")),
            *(Input(f"past_key_values.0.{kind}", torch.float32, cache) for kind in ("key", "value")),
        ],
    }


def test_what_its_runtime_does_not_feed_is_said() -> None:
    assert refusal(_inputs(), FACTS) is None
    rows = Input("deepstack_features.0", torch.float32, ("image_tokens", 32))
    fixed = Input("pixel_values", torch.float32, (24, 384))
    places = Input("deepstack_embeds.0", torch.float32, ("batch", "sequence", 32))
    for part, inputs, said in (
        ("embedding", [*_inputs()["embedding"], rows], "deepstack_features.0"),
        ("vision", [fixed], "first dimension of pixels"),
        ("decoder", [*_inputs()["decoder"], places], "deepstack_embeds.0"),
    ):
        assert said in str(refusal({**_inputs(), part: inputs}, FACTS))


def test_the_config_names_the_graphs(seeing_engine: Path) -> None:
    model = json.loads((seeing_engine / "genai_config.json").read_text())["model"]
    assert [model[part]["filename"] for part in ("vision", "embedding", "decoder")] == [
        "vision.onnx",
        "embedding.onnx",
        "decoder.onnx",
    ]
    assert model["image_token_id"] == IMAGE and "input_ids" not in model["decoder"]["inputs"]


def test_it_writes_what_transformers_writes(seeing_engine: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="the client of this layout")
    model = genai.Model(str(seeing_engine))
    ids = torch.tensor([[5, 9, *[IMAGE] * 4, 7, 11]])
    generator = torch.Generator().manual_seed(4)
    texts = []
    for pixels in (torch.randn(1, *PIXELS, generator=generator) for _ in range(2)):
        settings = genai.GeneratorParams(model)
        settings.set_search_options(max_length=ids.shape[1] + TOKENS, do_sample=False)
        writing, given = genai.Generator(model, settings), genai.NamedTensors()
        given["input_ids"] = ids.numpy().astype(np.int32)
        given["pixel_values"] = pixels.numpy()
        given["num_image_tokens"] = np.array([4], np.int64)
        writing.set_inputs(given)
        texts.append([])
        while not writing.is_done() and len(texts[-1]) < TOKENS:
            writing.generate_next_token()
            texts[-1].append(int(writing.get_next_tokens()[0]))
        want = generated(build("llava"), TOKENS, input_ids=ids, pixel_values=pixels)[0].tolist()
        assert texts[-1] == want[: len(texts[-1])] and len(texts[-1]) > 2
    assert texts[0] != texts[1]
