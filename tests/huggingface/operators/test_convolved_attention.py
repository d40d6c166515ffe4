"""Zaya's compressed convolutional attention, and what its cache holds behind padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moec.errors import MoecError
from moec.huggingface.operators import convolved_attention
from moec.huggingface.operators.convolved_attention import adapt_convolved_attention
from moec.huggingface.source import HuggingFaceSource
from moec.program.decoder_signature import IDS, MASK, fixed_inputs, present_name, without_padding
from tests import whole_zoo


def model(**changes: Any) -> Any:
    from transformers import ZayaConfig
    from transformers.models.zaya.modeling_zaya import ZayaCCAProjection

    config = ZayaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, **changes)
    with torch.device("meta"):
        return torch.nn.ModuleList([ZayaCCAProjection(config, 0)])


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_found_and_proven(bias: bool) -> None:
    assert adapt_convolved_attention(model(attention_bias=bias)) == 1


@pytest.mark.parametrize("part", ["_of_groups", "_keep"])
def test_one_that_mixes_or_keeps_something_else_is_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(convolved_attention, part)
    wrong = {
        "_of_groups": lambda module, mean: right(module, mean) * 1.01,
        "_keep": lambda module, cache, mixed, delayed: right(module, cache, mixed, delayed[:, :-1]),
    }[part]
    monkeypatch.setattr(convolved_attention, part, wrong)
    with pytest.raises(MoecError, match="does not compute what its parts suggest") as error:
        adapt_convolved_attention(model())
    assert error.value.code == "M206"


def test_its_states_are_carried_and_end_behind_the_last_token_that_is_no_padding() -> None:
    source = HuggingFaceSource.from_model(whole_zoo.build("zaya"))
    engine, program = source.reference(), source.capture()
    assert [i.name.split(".")[2] for i in fixed_inputs(source.inputs)] == ["conv_state", "recurrent_state"] * 2
    for sizes in ((2, 9, 0), (3, 1, 0), (2, 1, 6), (3, 5, 9)):
        sample = source.sample(dict(zip(("batch", "sequence", "past_sequence"), sizes, strict=True)))
        want, got = engine(**sample), program.run(**sample)
        for output in want:
            mine, theirs = (without_padding(o[output], sample, output, source.inputs) for o in (got, want))
            assert (mine - theirs).abs().max() <= 5e-5 * theirs.std(), (output, sizes)
    sample = source.sample({"batch": 2, "sequence": 9, "past_sequence": 0})
    ids, mask = sample[IDS], torch.ones_like(sample[MASK])
    bare = program.run(**sample | {MASK: mask})
    padded = {IDS: torch.cat([ids, ids[:, :3]], 1), MASK: torch.cat([mask, 0 * mask[:, :3]], 1)}
    behind = program.run(**sample | padded)
    theirs = engine(**sample | padded)  # transformers' own cuts them behind the padding
    for state in map(present_name, (i.name for i in fixed_inputs(source.inputs))):
        assert (behind[state] - bare[state]).abs().max() < 1e-5 * bare[state].std(), state
        assert (theirs[state] - bare[state]).abs().max() > 1e-2 * bare[state].std(), state


def test_biases_that_padding_writes_into_its_windows_are_refused_with_a_cache() -> None:
    from transformers import ZayaForCausalLM

    config = whole_zoo.config("zaya")
    config.attention_bias = True
    built = ZayaForCausalLM(config).eval()
    with pytest.raises(MoecError, match="lets padding before a text write into its windows") as error:
        HuggingFaceSource.from_model(built).inputs  # noqa: B018
    assert error.value.code == "M206" and "--no-cache, with which it was captured" in error.value.fix
