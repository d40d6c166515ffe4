"""An encoder-decoder that transformers writes text with, as the two parts that optimum's clients run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch

from moec.frontend.domain import Domain
from moec.huggingface.states.encoder_decoder_call import encoder_call, found_caches
from moec.program.conditions import Condition
from moec.program.decoder_signature import IDS, MASK, PAST_ENCODER, SEQUENCE, STATES, STATES_MASK
from moec.program.encoder_decoder import DECODER_IDS, ENCODER, ENCODER_SEQUENCE
from moec.program.program import META, Program
from moec.program.signature import Input

FEATURES = "input_features"
NO_MORE_THAN_STATES = Condition(f"{PAST_ENCODER} <= {ENCODER_SEQUENCE}")
_WIDTHS = (("input_feat_per_channel", "input_channels"), ("feature_projection_input_dim",))  # of a frame, in configs
_TAKES = {DECODER_IDS, "encoder_outputs", "past_key_values"}

Inputs = dict[Input, Domain]


def has_parts(model: Any) -> bool:
    """Whether transformers writes text with this encoder-decoder, from token ids or from features of sound."""
    if not model.config.is_encoder_decoder or not model.can_generate():
        return False
    known = model.main_input_name == IDS or (model.main_input_name == FEATURES and bool(_features(model)))
    return known and set(inspect.signature(model.forward).parameters) >= _TAKES


def encoder_inputs(model: Any) -> Inputs:
    """What the encoder takes. Features of sound are those of whole sounds: no part of one is padding."""
    if model.main_input_name == FEATURES:
        return {Input(FEATURES, torch.float32, _features(model)): Domain("number")}
    ids = Input(IDS, torch.int64, ("batch", SEQUENCE))
    config = model.config.get_text_config()
    return {ids: Domain("token", int(config.vocab_size)), Input(MASK, torch.int64, ids.shape): Domain("mask")}


def _features(model: Any) -> tuple[int | str, ...]:
    """The shape of a batch of features of sound: Whisper's have the one length that the model was made for; others
    have any. Empty where the config does not say it."""
    config = model.config
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        frames = int(config.max_source_positions)
        for convolution in (m for m in model.get_encoder().children() if isinstance(m, torch.nn.Conv1d)):
            frames *= convolution.stride[0]
        return ("batch", int(config.num_mel_bins), frames)
    widths = (math.prod(int(getattr(config, name, 0)) for name in names) for names in _WIDTHS)
    width = next((n for n in widths if n), 0)
    return ("batch", SEQUENCE, width) if width else ()


def whole_inputs(model: Any) -> Inputs:
    """What the model takes in one go: the encoder's inputs, and the tokens of the decoder."""
    ids = Input(DECODER_IDS, torch.int64, ("batch", "decoder_sequence"))
    return encoder_inputs(model) | {ids: Domain("token", _vocabulary(model))}


def decoder_inputs(model: Any, caches: Sequence[Input], width: int) -> Inputs:
    """What the decoder takes: its tokens, the encoder's states `[batch, encoder_sequence, width]` with their mask, and
    both caches."""
    ids = Input(IDS, torch.int64, ("batch", SEQUENCE))
    states = Input(STATES, torch.float32, ("batch", ENCODER_SEQUENCE, width))
    found: Inputs = {ids: Domain("token", _vocabulary(model))}
    if model.main_input_name == IDS:
        found[Input(STATES_MASK, torch.int64, ("batch", ENCODER_SEQUENCE))] = Domain("mask")
    return found | dict.fromkeys((states, *caches), Domain("number"))


def part_inputs(model: Any, part: str) -> Inputs:
    """The inputs of a part of a private copy of a model on the meta device; those of the caches are found by a run
    there.

    Raises:
        MoecError: M206 when the decoder keeps anything but keys and values.
    """
    if part == ENCODER:
        return encoder_inputs(model)
    model.set_attn_implementation("eager")  # others look into masks, which hold nothing here
    sizes = {"batch": 2, SEQUENCE: 5}
    taken = [i for i in encoder_inputs(model) if i.name != MASK]
    given = {i.name: torch.zeros(i.resolve(sizes), dtype=i.dtype, device=META) for i in taken}
    with torch.no_grad():
        states = next(iter(encoder_call(model)(**given).values()))
    return decoder_inputs(model, found_caches(model, states), int(states.shape[-1]))


def keep_to_states(program: Program) -> None:
    """Let a captured decoder take no more keys and values of the encoder's states than there are states. torch.export
    finds that out only where a mask of the states meets them."""
    program.conditions = tuple(sorted({*program.conditions, NO_MORE_THAN_STATES}, key=lambda c: c.text))
    program.edges = tuple(edge for edge in program.edges if NO_MORE_THAN_STATES.holds(edge))


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)
