"""The signature of a model that reads text with images, in three parts: names as onnxruntime-genai's clients read them.

The vision encoder runs once an image. The embedding makes a vector of each token, and puts the rows that the encoder
made in the place of the tokens that stand for images. The decoder takes vectors in the place of token ids.
"""

from __future__ import annotations

from collections.abc import Iterable

from moec.program.encoder_decoder import DECODER
from moec.program.signature import Input

VISION, EMBEDDING = "vision", "embedding"
VISION_PARTS = (VISION, EMBEDDING, DECODER)
IMAGE_FEATURES, IMAGE_TOKENS, IMAGES = "image_features", "image_tokens", "images"
# and a number: rows of images, and vectors of tokens, that are added to a decoder's layer
DEEPSTACK, DEEPSTACK_EMBEDS = "deepstack_features.", "deepstack_embeds."


def is_of_images(name: str) -> bool:
    """Whether a tensor has a row for each token that stands for an image, `[image_tokens, hidden]`."""
    return name == IMAGE_FEATURES or name.startswith(DEEPSTACK)


def image_rows(inputs: Iterable[Input]) -> list[Input]:
    """The inputs of an embedding that have a row for each token that stands for an image."""
    return [i for i in inputs if is_of_images(i.name)]
