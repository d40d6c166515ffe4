"""Untouched models whose scan forgets the state: later tokens one by one, padding among them without a trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moec.huggingface.inputs.calls import call_of
from moec.huggingface.inputs.signature import signature_of
from moec.huggingface.states.cache import cached_call
from moec.huggingface.states.token_by_token import forgets_states
from moec.program.decoder_signature import IDS, LOGITS, MASK, complete
from moec.program.program import Input
from tests.scanning_models import MAMBA, MODELS, drawn_ids, scanning_model

# the states of the tiny Jamba: a mixer, then keys and values
CACHES = (
    Input("past_key_values.0.conv_state", torch.float32, ("batch", 64, 4)),
    Input("past_key_values.0.recurrent_state", torch.float32, ("batch", 64, 8)),
    Input("past_key_values.1.key", torch.float32, ("batch", 2, "past_sequence", 8)),
    Input("past_key_values.1.value", torch.float32, ("batch", 2, "past_sequence", 8)),
)


@torch.no_grad()
def fed(call: Any, ids: Tensor, mask: Tensor, ends: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    logits, past, start = [], {k: v for k, v in complete(CACHES, {IDS: ids}).items() if k != IDS}, 0
    for end in ends:
        found = call(**{IDS: ids[:, start:end], MASK: mask[:, :end]}, **past)
        past, start = {name: found[name.replace("past_key_values", "present")] for name in past}, end
        logits.append(found[LOGITS])
    return torch.cat(logits, 1), past


def test_the_models_that_forget_are_those_of_mamba() -> None:
    found = {name for name in MODELS if forgets_states(scanning_model(name))}
    assert found == set(MAMBA)


def test_pieces_say_what_one_go_says_and_a_plain_call_does_not() -> None:
    model, ids = scanning_model("jamba"), drawn_ids(2, 11)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    call = call_of(model, signature_of(model, CACHES))
    want, states = fed(call, ids, mask, [11])
    got, after = fed(call, ids, mask, [6, 10, 11])
    assert (got - want)[mask.bool()].abs().max() <= 2e-5 * want.std()
    for name, state in states.items():
        a, b = after[name], state
        if name.endswith(("key", "value")):
            a, b = (t.movedim(2, 1)[mask.bool()] for t in (a, b))
        assert (a - b).abs().max() <= 2e-5 * b.std(), name
    wrong, _ = fed(cached_call(model.forward, CACHES), ids, mask, [6, 10, 11])
    assert (wrong - want)[mask.bool()].abs().max() > 1e-2 * want.std()


def test_padding_among_later_tokens_changes_no_state() -> None:
    model, ids = scanning_model("jamba"), drawn_ids(2, 9)
    call = call_of(model, signature_of(model, CACHES))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    _, shorter = fed(call, ids[:, :7], mask[:, :7], [4, 7])
    _, longer = fed(call, ids, mask, [4, 9])
    for name in (spec.name for spec in CACHES[:2]):
        assert torch.equal(longer[name][0], shorter[name][0])
        assert not torch.equal(longer[name][1], shorter[name][1]), "the other text went on"
