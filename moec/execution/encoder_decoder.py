"""An encoder and a decoder that write text together, as one engine."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moec.execution.engine import Engine
from moec.execution.parts import PartsEngine
from moec.program.decoder_signature import (
    IDS,
    LOGITS,
    MASK,
    PAST,
    PAST_ENCODER,
    SEQUENCE,
    STATES,
    STATES_MASK,
    present_name,
)
from moec.program.encoder_decoder import DECODER_IDS, ENCODER_SEQUENCE, LAST, caches_of
from moec.program.signature import Input

DECODER_SEQUENCE, ENCODER_STATES = "decoder_sequence", "encoder_last_hidden_state"


class EncoderDecoderEngine(PartsEngine):
    """Takes what the whole model takes: the encoder's inputs, and `decoder_input_ids` `[batch, decoder_sequence]`.

    Args:
        encoder: to `last_hidden_state`.
        decoder: with the signature of `moec.program.encoder_decoder`.
    """

    def __init__(self, encoder: Engine, decoder: Engine) -> None:
        super().__init__(encoder, decoder)
        self.name, self.encoder, self.decoder = encoder.name, encoder, decoder
        self.inputs = (*encoder.inputs, Input(DECODER_IDS, torch.int64, ("batch", DECODER_SEQUENCE)))
        self.outputs = (LOGITS, ENCODER_STATES)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        text = self.text({i.name: inputs[i.name] for i in self.encoder.inputs})
        return {LOGITS: text.advance(inputs[DECODER_IDS])[LOGITS], ENCODER_STATES: text.states}

    def text(self, given: Mapping[str, Tensor]) -> CrossText:
        """A new text beside these inputs of the encoder, which is run once; an absent mask is all ones."""
        if any(i.name == MASK for i in self.encoder.inputs) and MASK not in given and IDS in given:
            given = {**given, MASK: torch.ones_like(given[IDS])}
        return CrossText(self, given)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether both parts were made for these sizes."""
        own = {n: size for n, size in sizes.items() if n != DECODER_SEQUENCE}
        new = {"batch": sizes["batch"], SEQUENCE: sizes.get(DECODER_SEQUENCE, 1), PAST: 0, PAST_ENCODER: 0}
        states = {ENCODER_SEQUENCE: sizes[SEQUENCE]} if SEQUENCE in sizes else {}
        return self.encoder.holds(own) and self.decoder.holds(new | states)


class CrossText:
    """A text that a decoder writes beside what an encoder read.

    Attributes:
        states: the encoder's, `[batch, encoder_sequence, hidden]`.
    """

    def __init__(self, engine: EncoderDecoderEngine, given: Mapping[str, Tensor]) -> None:
        self._decoder = engine.decoder
        self.states: Tensor = engine.encoder(**given)[LAST]
        masked = MASK in given and any(i.name == STATES_MASK for i in self._decoder.inputs)
        self._fixed = {STATES: self.states} | ({STATES_MASK: given[MASK]} if masked else {})
        self._caches = {c.name: present_name(c.name) for c in caches_of(self._decoder.inputs)}
        self._past: dict[str, Tensor] = {}

    def advance(self, ids: Tensor) -> dict[str, Tensor]:
        """What the decoder says of the next tokens `[batch, new]`; both caches are kept for those after them."""
        outputs: dict[str, Tensor] = self._decoder(**{IDS: ids, **self._fixed, **self._past})
        self._past = {past: outputs[present] for past, present in self._caches.items()}
        return outputs
