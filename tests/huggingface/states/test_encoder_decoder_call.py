"""The decoder with both caches is the untouched model, and makes keys and values of no state twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from moec.errors import MoecError
from moec.huggingface.inputs.views import PlainViews
from moec.huggingface.source import HuggingFaceSource
from moec.huggingface.states.encoder_decoder_call import (
    decoder_call,
    encoder_call,
    found_caches,
    untouched_decoder_call,
)
from tests.encoder_decoders import VOCAB, build, padded


def _sample(model: Any, new: int, past: int, states: int, held: int) -> dict[str, Tensor]:
    source = HuggingFaceSource.from_model(model, part="decoder")
    sizes = {"batch": 2, "sequence": new, "past_sequence": past, "encoder_sequence": states}
    return source.sample({**sizes, "past_encoder_sequence": held}, seed=3)


def _caches(model: Any) -> Any:
    return [i for i in HuggingFaceSource.from_model(model, part="decoder").inputs if i.name.startswith("past_")]


@pytest.mark.parametrize("name", ["bart", "t5", "whisper", "seamless"])
@pytest.mark.parametrize("held", [0, 3, 6])
def test_whatever_of_the_states_is_held(name: str, held: int) -> None:
    model = build(name)
    caches, sample = _caches(model), _sample(model, 2, 3, 6, held)
    with torch.no_grad():
        want = untouched_decoder_call(model, model.forward, caches)(**sample)
        with PlainViews():  # as in a capture
            got = decoder_call(model, model.forward, caches)(**sample)
    assert want.keys() == got.keys() and all(torch.allclose(want[n], got[n], atol=1e-5) for n in want)
    assert want["present.0.encoder.key"].shape[2] == 6 and want["present.0.decoder.key"].shape[2] == 5


def test_in_one_go_it_is_the_whole_model() -> None:
    model, given = build("bart"), padded()
    ids = torch.randint(3, VOCAB, (3, 4))
    with torch.no_grad():
        states = encoder_call(model)(**given)["last_hidden_state"]
        want = model(**given, decoder_input_ids=ids).logits
        empty = {c.name: torch.zeros(3, 2, 0, 8) for c in _caches(model)}
        call = decoder_call(model, model.forward, _caches(model))
        got = call(input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=given["attention_mask"], **empty)
    assert torch.allclose(got["logits"], want, atol=1e-5)


def test_a_step_makes_keys_of_no_state() -> None:
    model, seen = build("bart"), list[int]()
    call = decoder_call(model, model.forward, _caches(model))
    prompt, step = _sample(model, 1, 0, 6, 0), _sample(model, 1, 1, 6, 6)
    projection = model.model.decoder.layers[0].encoder_attn.k_proj
    projection.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    with torch.no_grad(), PlainViews():
        call(**prompt)
        call(**step)
    assert seen == [6, 0]


def test_a_cache_of_something_else_is_refused() -> None:
    model = build("bart")
    decoder = model.model.decoder
    model.model.decoder = None
    try:
        with pytest.raises(MoecError) as error:
            found_caches(model, torch.zeros(2, 5, 16))
    finally:
        model.model.decoder = decoder
    assert error.value.code == "M206" and "--no-cache" in error.value.fix
