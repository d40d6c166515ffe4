"""Decoders with scans as one graph with their states: what the untouched model says, for a prompt, pieces and a token,
with padding."""

from __future__ import annotations

import pytest
import torch

from moec.huggingface.source import HuggingFaceSource
from moec.program.decoder_signature import MASK, fixed_inputs, without_padding
from tests.scanning_models import MODELS, scanning_model

SIZES = ((2, 9, 0), (3, 1, 0), (2, 1, 6), (3, 5, 9))  # batch, new tokens, earlier ones; chunks have 8
OFTEN = ("jamba", "mamba2", "minimax")  # a scan of each kind; the others share their code


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in OFTEN else [pytest.mark.repeats]) for n in MODELS])
def test_one_graph_says_what_the_model_says(name: str) -> None:
    source = HuggingFaceSource.from_model(scanning_model(name))
    engine, program = source.reference(), source.capture()
    scans = (torch.ops.moec.selective_scan.default, torch.ops.moec.linear_attention.default)
    assert program.nodes(*scans) and fixed_inputs(source.inputs)
    for batch, length, past in SIZES:
        sample = source.sample({"batch": batch, "sequence": length, "past_sequence": past})
        assert sample[MASK].shape == (batch, past + length) and bool((sample[MASK] == 0).any()) == (past + length > 1)
        want, got = engine(**sample), program.run(**sample)
        for output in want:
            mine, theirs = (without_padding(outputs[output], sample, output) for outputs in (got, want))
            assert (mine - theirs).abs().max() <= 5e-5 * theirs.std(), (output, batch, length, past)
    state = next(spec.name for spec in fixed_inputs(source.inputs) if "recurrent" in spec.name)
    forgot = program.run(**{**sample, state: torch.zeros_like(sample[state])})["logits"]
    assert (forgot - got["logits"]).abs().max() > 1e-3 * got["logits"].std(), "the state is read"
