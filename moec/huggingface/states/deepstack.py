"""Features of images that a decoder adds to its first layers (DeepStack, https://arxiv.org/abs/2406.04334), as tensors
that go from part to part: rows of the encoder, then vectors of every token, zeros where no image is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor

from moec.program.decoder_signature import EMBEDS
from moec.program.vision_language import DEEPSTACK, DEEPSTACK_EMBEDS

_ADD, _KEPT = "_deepstack_process", "deepstack_features"  # of transformers' decoders, and of what encoders return


def levels(model: Any) -> int:
    """To how many of its layers a model's decoder adds features of images."""
    if not hasattr(model.get_decoder(), _ADD):
        return 0
    return len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))


def rows_of(features: Any) -> dict[str, Tensor]:
    """The rows `[image_tokens, hidden]` of each level, by name, of what an encoder returns; none of most."""
    kept = getattr(features, _KEPT, None) or ()
    return {f"{DEEPSTACK}{k}": torch.cat([*level], 0) for k, level in enumerate(kept)}


def with_rows(features: Any, rows: Mapping[str, Tensor]) -> Any:
    """What an encoder returns, with other rows."""
    if not rows:
        return features
    found = copy(features)
    setattr(found, _KEPT, [(value,) for value in rows.values()])
    return found


def handed(given: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """The vectors `[batch, sequence, hidden]` that a forward handed its decoder: zeros where no image is."""
    mask, rows = given.get("visual_pos_masks"), given.get("deepstack_visual_embeds")
    none = torch.zeros_like(given[EMBEDS])
    names = [f"{DEEPSTACK_EMBEDS}{k}" for k in range(count)]
    if mask is None or rows is None:
        return dict.fromkeys(names, none)
    return {name: none.masked_scatter(mask[..., None], level) for name, level in zip(names, rows, strict=True)}


@contextmanager
def adding(decoder: Any, vectors: Sequence[Tensor], captured: bool) -> Iterator[None]:
    """Within, a decoder adds these vectors `[batch, sequence, hidden]`, one of each level, to its first layers; in a
    capture without asking where any are."""

    def added(_module: Any, args: Any, given: dict[str, Any]) -> Any:
        whole = torch.ones(vectors[0].shape[:2], dtype=torch.bool, device=vectors[0].device)
        rows = [v if captured else v.flatten(0, 1) for v in vectors]
        return args, {**given, "visual_pos_masks": whole, "deepstack_visual_embeds": rows}

    handle = decoder.register_forward_pre_hook(added, with_kwargs=True)
    if captured:
        setattr(decoder, _ADD, lambda hidden, _mask, more: hidden + more)
    try:
        yield
    finally:
        handle.remove()
        if captured:
            delattr(decoder, _ADD)
