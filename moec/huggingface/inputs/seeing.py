"""The inputs of a model that reads text with images, and of its three parts; samples in which images have their
places."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moec.frontend.domain import Domain
from moec.huggingface.inputs.media import BATCH
from moec.huggingface.inputs.signature import CAPTURE_SIZES, Signature
from moec.huggingface.states.cache import has_cache
from moec.huggingface.states.deepstack import levels
from moec.huggingface.states.vision_language_call import FEATURES, image_token, owner_of
from moec.program.decoder_signature import EMBEDS, IDS, MASK, POSITIONS, SEQUENCE, TOTAL
from moec.program.encoder_decoder import DECODER
from moec.program.program import Input
from moec.program.vision_language import (
    DEEPSTACK,
    DEEPSTACK_EMBEDS,
    EMBEDDING,
    IMAGE_FEATURES,
    IMAGE_TOKENS,
    IMAGES,
    VISION,
)

PIXELS = "pixel_values"
_SAMPLED = 3  # images of a capture


def sees(model: Any) -> bool:
    """Whether transformers writes text with this model beside images, which it puts in the place of tokens."""
    takes = hasattr(model, FEATURES) and has_cache(model) and PIXELS in inspect.signature(model.forward).parameters
    return bool(takes) and owner_of(model) is not None and image_token(model) >= 0


def has_grid_positions(model: Any) -> bool:
    """Whether a model's tokens have places in time, height and width, which the grids of its images decide."""
    return hasattr(owner_of(model), "get_rope_index")


def seeing_signature(model: Any, part: str, features: Signature, caches: Sequence[Input] = ()) -> Signature:
    """The signature of a model of text and images, or of a part of it.

    Args:
        model: its weights may be missing.
        part: of `VISION_PARTS`; empty for the whole.
        features: of what makes the features of images.
        caches: of the decoder.
    """
    vision = tuple(replace(i, shape=tuple(IMAGES if d == BATCH else d for d in i.shape)) for i in features.inputs)
    sizes = {IMAGES: _SAMPLED, **{IMAGES if d == BATCH else d: size for d, size in features.sizes.items()}}
    one = {**_of_one(vision, {**sizes, IMAGES: 1}), **features.fixed}
    own = Signature((), {}, features.scale, sizes, part=part, image=one)
    config = model.config.get_text_config()
    hidden, token = int(config.hidden_size), Domain("token", int(config.vocab_size))
    ids = Input(IDS, torch.int64, (BATCH, SEQUENCE))
    if part == VISION:
        return replace(own, inputs=vision, domains=features.domains, fixed=features.fixed)
    count = levels(model)
    if part == EMBEDDING:
        names = (IMAGE_FEATURES, *(f"{DEEPSTACK}{k}" for k in range(count)))
        rows = [Input(name, torch.float32, (IMAGE_TOKENS, hidden)) for name in names]
        return replace(own, inputs=(ids, *rows), domains={IDS: token, **dict.fromkeys(names, Domain("number"))})
    if part == DECODER:
        names = (EMBEDS, *(f"{DEEPSTACK_EMBEDS}{k}" for k in range(count)))
        vectors, *more = (Input(name, torch.float32, (BATCH, SEQUENCE, hidden)) for name in names)
        mask = Input(MASK, torch.int64, (BATCH, TOTAL))
        more += [Input(POSITIONS, torch.int64, (3, BATCH, SEQUENCE))] if has_grid_positions(model) else []
        domains = {i.name: Domain("number") for i in (vectors, *more)}
        domains |= {MASK: Domain("padding"), POSITIONS: Domain("position")}
        domains |= {c.name: Domain("state") for c in caches}
        return replace(own, inputs=(vectors, mask, *more, *caches), domains=domains)
    mask = Input(MASK, torch.int64, (BATCH, SEQUENCE))
    domains = {IDS: token, MASK: Domain("mask"), **features.domains}
    return replace(own, inputs=(ids, mask, *vision), domains=domains, fixed=features.fixed)


def _of_one(vision: Sequence[Input], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """What the encoder takes of one image, zeros."""
    return {i.name: torch.zeros(i.resolve({**CAPTURE_SIZES, **sizes}), dtype=i.dtype) for i in vision}


def planted(ids: Tensor, token: int, counts: Sequence[int], each: int, seed: int) -> Tensor:
    """Tokens `[batch, sequence]` in which images have their places, and no other token is `token`.

    Args:
        ids: any. token: that stands for a part of an image.
        counts: images of each row. each: tokens of an image.
        seed: of where they stand. An image is followed by another token at least.
    """
    found = torch.where(ids == token, (token + 1) % 2, ids)
    generator = torch.Generator().manual_seed(seed)
    for row, count in zip(found, counts, strict=True):
        free = max(0, len(row) - count * (each + 1) - len(ids))  # the last are padding in some rows
        gaps = torch.randint(0, free + 1, (count,), generator=generator).sort().values
        for k, gap in enumerate(gaps.tolist()):
            start = gap + k * (each + 1)
            row[start : start + each] = token
    return found


def scattered(ids: Tensor, token: int, rows: int, seed: int) -> Tensor:
    """Tokens `[batch, sequence]` of which so many, anywhere, are `token`; all, where there are no more."""
    found = torch.where(ids == token, (token + 1) % 2, ids)
    order = torch.randperm(found.numel(), generator=torch.Generator().manual_seed(seed))
    found.view(-1)[order[:rows]] = token
    return found
