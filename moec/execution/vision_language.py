"""A vision encoder, an embedding and a decoder that write text beside images together, as one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.execution.grid_positions import grid_positions
from moec.execution.parts import PartsEngine
from moec.program.decoder_signature import IDS, LOGITS, MASK, PAST, POSITIONS, SEQUENCE, cache_inputs, present_name
from moec.program.signature import Input
from moec.program.vision_language import IMAGE_TOKENS, image_rows


def of_text(inputs: Sequence[Input], given: Mapping[str, Any]) -> Sequence[Input]:
    """The inputs that a call with these has to have: those of images may be left out, all of them."""
    text = [i for i in inputs if i.name in (IDS, MASK)]
    return inputs if set(given) - {i.name for i in text} else text


class VisionLanguageEngine(PartsEngine):
    """Takes what the whole model takes: `input_ids` and `attention_mask` `[batch, sequence]`, and the encoder's inputs,
    which may be left out for a text without images.

    Args:
        vision: to rows for the tokens of images. embedding: to vectors. decoder: from vectors to logits.
        image_token: the token that stands for a part of an image.
        grids, merge: of a decoder that takes places in time, height and width, see `grid_positions`.
    """

    def __init__(
        self, vision: Engine, embedding: Engine, decoder: Engine, image_token: int,
        grids: Sequence[Sequence[int]] = (), merge: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(vision, embedding, decoder)
        self.name, self.image_token, self.grids, self.merge = decoder.name, image_token, grids, merge
        self.vision, self.embedding, self.decoder = vision, embedding, decoder
        ids = (Input(name, torch.int64, ("batch", SEQUENCE)) for name in (IDS, MASK))
        self.inputs, self.outputs = (*ids, *vision.inputs), (LOGITS,)

    def check(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        ids = inputs.get(IDS)
        if MASK not in inputs and isinstance(ids, Tensor):
            inputs = {**inputs, MASK: torch.ones_like(ids)}
        return self.fitting(of_text(self.inputs, inputs), inputs)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {name: value for name, value in inputs.items() if name != IDS}
        return {LOGITS: self.text(given).advance(inputs[IDS])[LOGITS]}

    def text(self, given: Mapping[str, Tensor]) -> SeeingText:
        """A new text beside these images, which are encoded once; its prompt has all of them. An absent mask of the
        prompt is all ones."""
        return SeeingText(self, given)

    def without_images(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs with another token wherever one stands for a part of an image."""
        ids = given[IDS]
        return {**given, IDS: torch.where(ids == self.image_token, (self.image_token + 1) % 2, ids)}

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether all parts were made for these sizes."""
        images = {n: size for n, size in sizes.items() if n not in ("batch", SEQUENCE)}
        tokens = {"batch": sizes["batch"], SEQUENCE: sizes.get(SEQUENCE, 1)}
        return self.vision.holds(images) and self.embedding.holds(tokens) and self.decoder.holds({**tokens, PAST: 0})


class SeeingText:
    """A text that a decoder writes beside images."""

    def __init__(self, engine: VisionLanguageEngine, given: Mapping[str, Tensor]) -> None:
        self._engine = engine
        rows = image_rows(engine.embedding.inputs)
        self._none = {i.name: torch.zeros(i.resolve({IMAGE_TOKENS: 0}), dtype=i.dtype) for i in rows}
        images = {name: value for name, value in given.items() if name != MASK}
        self._rows = {**self._none, **engine.vision(**images)} if images else self._none
        self._mask = given.get(MASK, torch.zeros(0, dtype=torch.int64))
        self._past: dict[str, Tensor] = {}
        self._next = torch.zeros(0, dtype=torch.int64)

    def advance(self, ids: Tensor) -> dict[str, Tensor]:
        """What the decoder says of the next tokens `[batch, new]`; the first have all images in them.

        Raises:
            MoecError: M211 where the first tokens have places for more or less than the images.
        """
        engine, rows, ones = self._engine, self._none, torch.ones_like(ids)
        if self._past:
            self._mask = torch.cat([self._mask, ones], 1)
        else:
            rows, self._mask = self._rows, self._mask if self._mask.numel() else ones
            self._require_places(ids)
        vectors = engine.embedding(**{IDS: ids, **rows})
        places = self._places(ids) if any(i.name == POSITIONS for i in engine.decoder.inputs) else {}
        outputs: dict[str, Tensor] = engine.decoder(**vectors, **places, **{MASK: self._mask}, **self._past)
        self._past = {c.name: outputs[present_name(c.name)] for c in cache_inputs(engine.decoder.inputs)}
        return outputs

    def _places(self, ids: Tensor) -> dict[str, Tensor]:
        """Where the next tokens stand; those after a prompt count on from the furthest place in it."""
        if self._past:
            found = (self._next[:, None] + torch.arange(ids.shape[1])).expand(3, -1, -1)
        else:
            engine = self._engine
            found = grid_positions(ids, self._mask, engine.image_token, engine.grids, engine.merge)
        self._next = found.amax((0, 2)) + 1
        return {POSITIONS: found}

    def _require_places(self, ids: Tensor) -> None:
        places, rows = int((ids == self._engine.image_token).sum()), len(next(iter(self._rows.values())))
        if places != rows:
            what = f"the tokens have {places} places for parts of images, and the images have {rows} parts"
            fix = f"put token {self._engine.image_token} once for each, as the model's processor does"
            raise MoecError("M211", what, self._engine.name, fix)
