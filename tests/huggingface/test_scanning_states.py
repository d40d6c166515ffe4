"""Decoders with scans as one graph with their states: what the untouched model says, for a prompt, pieces and a token,
with padding."""

from __future__ import annotations

import pytest
import torch

from moec.huggingface.source import HuggingFaceSource
from moec.program.decoder_signature import IDS, MASK, fixed_inputs, present_name, without_padding
from moec.program.program import Program
from moec.program.signature import Sample
from tests.scanning_models import MODELS, scanning_model

SIZES = ((2, 9, 0), (3, 1, 0), (2, 1, 6), (3, 5, 9))  # batch, new tokens, earlier ones; chunks have 8
OFTEN = ("mamba2",)  # the others share their code, and `operators/test_scans.py` has a scan of each kind


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
            mine, theirs = (without_padding(o[output], sample, output, source.inputs) for o in (got, want))
            assert (mine - theirs).abs().max() <= 5e-5 * theirs.std(), (output, batch, length, past)
    state = next(spec.name for spec in fixed_inputs(source.inputs) if "recurrent" in spec.name)
    forgot = program.run(**{**sample, state: torch.zeros_like(sample[state])})["logits"]
    assert (forgot - got["logits"]).abs().max() > 1e-3 * got["logits"].std(), "the state is read"
    assert _apart(program, source.sample({"batch": 2, "sequence": 9, "past_sequence": 0})) <= 5e-5


def _apart(program: Program, sample: Sample) -> float:
    """How far two texts are apart that end with padding, or begin with it: logits of the two tokens that follow."""
    ids, found = sample[IDS], []
    for side in ("left", "right"):
        filler, ones = torch.zeros(2, 3, dtype=torch.int64), torch.ones_like(ids)
        order = 1 if side == "right" else -1
        whole, mask = (torch.cat([a, b][::order], 1) for a, b in ((ids, filler), (ones, filler)))
        call, logits = {**sample, IDS: whole, MASK: mask}, []
        for _ in range(2):
            outputs = program.run(**call)
            logits.append(outputs["logits"][:, -1])
            mask = torch.cat([mask, ones[:, :1]], 1)
            call = {name: outputs[present_name(name)] for name in sample if name not in (IDS, MASK)}
            call |= {IDS: ids[:, :1], MASK: mask}
        found.append(logits[1])
    return float((found[0] - found[1]).abs().max() / found[0].std())
