"""Models of text and images as a `Source` of three parts, which onnxruntime-genai's clients run beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import ceil
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.execution.engine import Engine
from moec.frontend.account import Account, LeaveOut
from moec.frontend.source import Source
from moec.huggingface.account import account_of
from moec.huggingface.inputs.asked import Asked
from moec.huggingface.inputs.given import Given
from moec.huggingface.inputs.seeing import PIXELS, has_grid_positions, planted, scattered, seeing_signature, sees
from moec.huggingface.inputs.signature import Signature
from moec.huggingface.operators.capturable import capturable
from moec.huggingface.origin import Origin
from moec.huggingface.reading.folder import ModelFolder
from moec.huggingface.retried import explained
from moec.huggingface.source import HuggingFaceSource
from moec.huggingface.states.cache import cache_signature
from moec.huggingface.states.encoder_decoder import has_parts
from moec.huggingface.states.vision_language_call import image_token, vision_call
from moec.huggingface.untouched import UntouchedSeeing
from moec.program.decoder_signature import IDS, SEQUENCE
from moec.program.encoder_decoder import DECODER, PARTS
from moec.program.program import META, Input, Program
from moec.program.vision_language import EMBEDDING, IMAGE_FEATURES, IMAGES, VISION, VISION_PARTS


class VisionLanguageSource(HuggingFaceSource):
    """A model that reads text with images, whole or one of its parts (`moec.program.vision_language`). It opens every
    model of the transformers library; any other is a `HuggingFaceSource`."""

    def __init__(
        self, text: str, origin: Origin, cache: bool = True, leave_out: LeaveOut | None = None,
        given: Given | None = None, part: str = "",
    ) -> None:  # fmt: skip
        super().__init__(text, origin, cache, leave_out, None, part)
        self._given, self._asked = given, Asked(origin, self._leave_out, given)
        self._cache = part == DECODER

    @classmethod
    def of_origin(
        cls, text: str, origin: Origin, cache: bool, leave_out: LeaveOut, given: Given | None, part: str
    ) -> HuggingFaceSource:
        """See `HuggingFaceSource.open`. Raises M201 for a part that the model does not have."""
        seeing = cls.is_asked_for(origin, cache, leave_out, given)
        known = VISION_PARTS if seeing else PARTS if has_parts(origin.template) else ()
        if part and part not in known:
            fix = f"name one of {', '.join(known)}" if known else "leave --part out: the model is one graph"
            raise MoecError("M201", f"{type(origin.template).__name__} has no part {part!r}", "--part", fix)
        return (cls if seeing else HuggingFaceSource)(text, origin, cache, leave_out, given, part)

    @classmethod
    def is_asked_for(cls, origin: Origin, cache: bool, leave_out: LeaveOut, given: Given | None) -> bool:
        """Whether a model has these parts, and all of it is asked for, by its own inputs or with some of its images'
        in their place."""
        own = given is None or (isinstance(origin, ModelFolder) and IDS not in given.samples)
        return own and cache and sees(origin.template) and IDS not in leave_out and PIXELS not in leave_out

    @cached_property
    def signature(self) -> Signature:
        """Inputs and their domains, see `seeing_signature`."""
        caches: Sequence[Input] = ()
        if self.part == DECODER:
            with explained(self._refusal):
                caches = cache_signature(capturable(self.origin, torch.float32, False)[0])
        return seeing_signature(self.origin.template, self.part, self._asked.features, caches)

    def reference(self) -> Engine:
        """The untouched model in eager PyTorch and float32, weights loaded; the whole one also for text alone."""
        if self.part:
            return super().reference()
        return UntouchedSeeing(self.origin.loaded(), self.signature, self.sample({"batch": 1, SEQUENCE: 2, IMAGES: 1}))

    def parts(self) -> dict[str, Source]:
        """The vision encoder, the embedding and the decoder."""
        return dict(self._own_parts)

    @cached_property
    def _own_parts(self) -> dict[str, VisionLanguageSource]:
        names = () if self.part else VISION_PARTS
        found = {
            part: VisionLanguageSource(self.text, self.origin, True, self._leave_out, self._given, part)
            for part in names
        }
        for part in found.values():
            part._asked = self._asked  # whose processor takes long, and says the same to each
        return found

    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        """A part as a Program. Raises M201 for the whole, which is no graph."""
        if not self.part:
            ways = "for text alone, --leave-out 'pixel_values*'; in Python, moec.open_source(model, part='vision')"
            raise MoecError("M201", f"a model of text and images is {len(VISION_PARTS)} graphs", self.text, ways)
        return super().capture(dtype)

    def account(self) -> Account:
        """See `HuggingFaceSource.account`; once all parts are captured, with what none of them reads anything of."""
        read = [part._read for part in self._own_parts.values()]
        if read and all(read):
            self._note_unread(set().union(*read))
        return super().account()

    def _way_out(self, error: MoecError) -> MoecError:
        """The refusal with its way out: a value of what sizes hang on, or text alone."""
        better = error
        if self.part == VISION:
            better = self._asked.with_values(error, self.signature, lambda given: self._with(given).capture())
        return better if better is not error else self._for_text(error)

    def _with(self, given: Given) -> VisionLanguageSource:
        return VisionLanguageSource(self.text, self.origin, True, self._leave_out, given, self.part)

    def _for_text(self, error: MoecError) -> MoecError:
        """The refusal, with the model for text alone as the way out, if it can be captured so."""
        alone = LeaveOut([*self._leave_out.patterns, "pixel_values*"])
        try:
            HuggingFaceSource(self.text, self.origin, True, alone).capture()
        except MoecError as other:
            what = f"{error.what}; for text alone, {other.what}"
            return MoecError(error.code, what, other.where, other.fix)
        fix = "compile it for text alone, which was captured just now: --leave-out 'pixel_values*'"
        return MoecError(error.code, error.what, error.where, fix)

    def joined_by(self) -> dict[str, Any]:
        """The token that stands for a part of an image; and, where they decide positions, the grids of images."""
        model = self.origin.template
        found: dict[str, Any] = {"image_token": image_token(model)}
        if has_grid_positions(model):
            grids = self.signature.fixed["image_grid_thw"].tolist()
            found |= {"grids": grids, "merge": int(model.config.vision_config.spatial_merge_size)}
        return found

    @cached_property
    def _account(self) -> Account:
        whole = self.signature if not self.part else seeing_signature(self.origin.template, "", self._asked.features)
        names = (i.name for i in whole.inputs)
        return account_of(self.origin, names, self._leave_out, self._asked.otherwise(whole), whole.fixed)

    # ------------------------------------------------------------------ samples
    def sample(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random valid inputs. Of the whole model, `sequence` counts the tokens that are not of images: each row is
        longer by the images that it has, all rows nearly as many."""
        token = image_token(self.origin.template)
        if self.part:
            found = super().sample(sizes, seed)
            if self.part == EMBEDDING:
                found[IDS] = scattered(found[IDS], token, len(found[IMAGE_FEATURES]), seed)
            return found
        each, images = self._of_images(sizes)
        counts = [len(range(row, images, sizes["batch"])) for row in range(sizes["batch"])]
        length = sizes[SEQUENCE] + ceil(images / sizes["batch"]) * (each + 1)
        found = super().sample({**sizes, SEQUENCE: length}, seed)
        found[IDS] = planted(found[IDS], token, counts, each, seed)
        return found

    def _of_images(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Tokens of an image, and how many images inputs of these sizes hold."""
        dynamic = any(IMAGES in i.shape for i in self.inputs)
        return self._rows_of_one, sizes[IMAGES] if dynamic else self._fixed_images

    @property
    def _fixed_images(self) -> int:
        """How many images there always are, where their grids have one value for good; else 1."""
        return next((len(value) for value in self.signature.fixed.values() if value.dim() == 2), 1)

    @cached_property
    def _rows_of_one(self) -> int:
        """Tokens that stand for one image: rows that the encoder makes of it, found by a run without weights."""
        signature = self.signature
        device = "cpu" if signature.fixed else META
        model = capturable(self.origin, torch.float32, own_attention=True)[0].to_empty(device=device)
        images = {n: v for n, v in (signature.image or {}).items() if n not in signature.fixed}
        with torch.no_grad():
            rows = vision_call(model, signature.fixed)(**{n: v.to(device) for n, v in images.items()})
        return len(rows[IMAGE_FEATURES]) // self._fixed_images
