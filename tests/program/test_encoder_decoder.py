"""What absent caches mean beside an encoder, and which sizes go together."""

from __future__ import annotations

import torch

from moec.program.decoder_signature import cache_inputs, complete, fixed_inputs, growing_inputs
from moec.program.encoder_decoder import cross_names, is_cross, is_cross_decoder, with_encoder
from moec.program.signature import Input

DECODER = (
    Input("input_ids", torch.int64, ("batch", "sequence")),
    Input("encoder_attention_mask", torch.int64, ("batch", "encoder_sequence")),
    Input("encoder_hidden_states", torch.float32, ("batch", "encoder_sequence", 8)),
    *(Input(n, torch.float32, ("batch", 2, "past_sequence", 4)) for n in cross_names(0, "decoder")),
    *(Input(n, torch.float32, ("batch", 2, "past_encoder_sequence", 4)) for n in cross_names(0, "encoder")),
)


def test_absent_caches_are_empty_and_an_absent_mask_is_ones() -> None:
    given = {"input_ids": torch.zeros(3, 1, dtype=torch.int64), "encoder_hidden_states": torch.zeros(3, 5, 8)}
    filled = complete(DECODER, given)
    assert {n: tuple(filled[n].shape) for n in cross_names(0, "encoder")} == dict.fromkeys(
        cross_names(0, "encoder"), (3, 2, 0, 4)
    )
    assert filled["encoder_attention_mask"].equal(torch.ones(3, 5, dtype=torch.int64))
    assert "encoder_attention_mask" not in complete(DECODER, {"input_ids": given["input_ids"]}), "of unknown length"


def test_sizes_that_go_together() -> None:
    names = ["batch", "sequence", "encoder_sequence", "past_sequence", "past_encoder_sequence"]
    first = with_encoder(names, {"batch": 2, "sequence": 4, "past_sequence": 0})
    later = with_encoder(names, {"batch": 2, "sequence": 1, "past_sequence": 4})
    assert first["past_encoder_sequence"] == 0 and later["past_encoder_sequence"] == later["encoder_sequence"] > 0
    assert with_encoder(names, {"past_encoder_sequence": 3})["past_encoder_sequence"] == 3
    assert with_encoder(["batch"], {"batch": 2}) == {"batch": 2}


def test_what_is_such_a_decoder() -> None:
    assert is_cross_decoder(DECODER) and not is_cross_decoder(DECODER[:3])
    assert is_cross("present.3.encoder.key") and not is_cross("present.3.decoder.key")


def test_no_state_of_it_keeps_its_shape() -> None:
    own = [i for i in DECODER if ".decoder." in i.name]
    assert fixed_inputs(DECODER) == [] and growing_inputs(DECODER) == own and len(cache_inputs(DECODER)) == 4
