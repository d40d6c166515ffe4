"""Tiny random models of text and images, whose texts do not end, each with the processor that lies beside such
checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as T
from torch import Tensor

from tests.reported import spread
from tests.seen_and_heard import VISION_LANGUAGE, glm4v_moe, llama4

IMAGE = 60  # the token of LLaVA here
PIXELS = (3, 16, 16)  # of an image, which is 4 tokens
VIDEOS = "pixel_values_videos"  # what models of images and videos are compiled without


def llava(text: Any = None) -> Any:
    """LLaVA with a mixture of experts that reads text, of one layer."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = text or T.MixtralConfig(
        **sizes, vocab_size=64, num_key_value_heads=1, max_position_embeddings=64, num_local_experts=4, eos_token_id=59
    )
    eye = T.CLIPVisionConfig(**sizes, image_size=PIXELS[1], patch_size=8)
    config = T.LlavaConfig(text_config=text, vision_config=eye, image_token_index=IMAGE, vision_feature_layer=-1)
    return T.LlavaForConditionalGeneration(config)


KINDS: dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]] = {
    "llava": (llava, lambda: T.CLIPImageProcessorPil(size={"shortest_edge": PIXELS[1]}, crop_size=PIXELS[1])),
    "llama4": (llama4, lambda: T.SiglipImageProcessorPil(size={"height": 32, "width": 32})),
    "qwen3-vl-moe": (VISION_LANGUAGE.model, VISION_LANGUAGE.processor),
    "glm4v-moe": (glm4v_moe, None),
}


def build(name: str) -> Any:
    """The model, the same in every call."""
    torch.manual_seed(0)
    model = spread(KINDS[name][0]()).eval()
    model.generation_config.eos_token_id = None
    return model


def save(name: str, folder: Path) -> Path:
    """The model as a Hugging Face folder, with its processor."""
    build(name).save_pretrained(folder)
    processor = KINDS[name][1]
    if processor is not None:
        processor().save_pretrained(folder)
    return folder


def prompts(token: int, each: int, length: int = 14) -> dict[str, Tensor]:
    """Two texts with an image each, in other places, the second padded on the left."""
    ids = torch.randint(3, min(token, 240), (2, length), generator=torch.Generator().manual_seed(3))
    ids[0, 3 : 3 + each], ids[1, 6 : 6 + each] = token, token
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model: Any, tokens: int, **given: Tensor) -> Tensor:
    """What transformers writes, without the prompt."""
    found: Tensor = model.generate(**given, max_new_tokens=tokens, do_sample=False)
    return found[:, given["input_ids"].shape[1] :]
