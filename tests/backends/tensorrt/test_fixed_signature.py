"""The two signatures of one decoder: its program's, whose cache grows, and its plan's, whose cache is a buffer."""

from __future__ import annotations

import torch

from moec.backends.tensorrt.fixed_signature import LENGTH, VIEW, buffers, grown
from moec.program.decoder_signature import TOTAL
from moec.program.signature import Input
from tests.backends.tensorrt.test_profiles import DECODER, PAST


def test_a_plan_gets_buffers_a_mask_of_their_places_and_their_length() -> None:
    ids, mask, cache, length = buffers(DECODER, 40)
    assert ids == DECODER[0] and mask.shape == ("batch", VIEW) and cache.shape == ("batch", 2, 40, 8)
    assert (length.name, length.dtype, length.shape) == (LENGTH, torch.int64, (1,))


def test_outputs_are_the_programs() -> None:
    logits = Input("logits", torch.float32, ("batch", "sequence", 96))
    present = Input("present.0.key", torch.float32, ("batch", 2, 40, 8))
    assert grown((logits, present), 40) == (logits, Input(present.name, torch.float32, ("batch", 2, TOTAL, 8)))
    growing = Input(present.name, torch.float32, ("batch", 2, TOTAL, 8))
    assert grown((logits, growing), 0) == (logits, growing) and PAST.shape[2] == "past_sequence"
