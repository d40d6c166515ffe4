"""`genai_config.json` of a model of text and images in three graphs, which onnxruntime-genai runs beside each other.

The runtime knows no general type of such models, only names of models; each names a processor of images, too. Of those
whose graphs are these three and nothing else is `gemma3`. Its processor of images is that model's own, so it is given
no settings here, and `create_multimodal_processor` says so: pixels come from the checkpoint's own processor, with
`Generator.set_inputs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moec.layouts import genai
from moec.layouts.facts import ModelFacts
from moec.program.decoder_signature import EMBEDS, IDS
from moec.program.program import Input
from moec.program.vision_language import IMAGE_FEATURES

TYPE = "gemma3"
NO_PROCESSOR = "none: pixels come from the processor of transformers"


def refusal(inputs: Mapping[str, Sequence[Input]], facts: ModelFacts) -> str | None:
    """Why onnxruntime-genai cannot run these parts; None when it can.

    Args:
        inputs: of each part, by its name.
    """
    vision, embedding, decoder = inputs.values()
    rows = [i.name for i in embedding if i.name not in (IDS, IMAGE_FEATURES)]
    if rows:
        return f"its runtime hands an embedding no {', '.join(rows)}"
    if not any(len(i.shape) > 2 and isinstance(i.shape[0], str) for i in vision):
        return "its runtime counts images by the first dimension of pixels, which is fixed here"
    return genai.refusal([_as_ids(i) for i in decoder], facts)


def _as_ids(spec: Input) -> Input:
    """A decoder's vectors, which its runtime feeds here, as the ids that they stand for."""
    return Input(IDS, spec.dtype, spec.shape[:2]) if spec.name == EMBEDS else spec


def write(
    folder: Path,
    files: Mapping[str, str],
    inputs: Mapping[str, Sequence[Input]],
    outputs: Sequence[str],
    facts: ModelFacts,
    image_token: int,
    device: str = "cpu",
    threads: int = 0,
    shared_cache: bool = False,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Put `genai_config.json` beside the graphs.

    Args:
        files: of each part, by its name.
        inputs: of each part. outputs: of the decoder.
        facts, device, threads, shared_cache, settings: see `moec.layouts.arrange`.
        image_token: that stands for a part of an image.
    """
    vision, embedding, decoder = files.values()
    of_vision, _, of_decoder = inputs.values()
    found: dict[str, Any] = genai.config(of_decoder, outputs, facts, decoder, device, threads, shared_cache, settings)
    model = found["model"]
    model["type"], model["image_token_id"] = TYPE, image_token
    model["decoder"]["inputs"][EMBEDS] = EMBEDS
    model["embedding"] = {
        "filename": embedding,
        "inputs": {IDS: IDS, IMAGE_FEATURES: IMAGE_FEATURES},
        "outputs": {EMBEDS: EMBEDS},
    }
    pixels = next(i.name for i in of_vision if len(i.shape) > 2)
    model["vision"] = {
        "filename": vision,
        "config_filename": NO_PROCESSOR,
        "inputs": {"pixel_values": pixels},
        "outputs": {IMAGE_FEATURES: IMAGE_FEATURES},
    }
    (folder / genai.CONFIG).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
