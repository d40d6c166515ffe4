"""Models that see some keys only write what transformers writes, past every bound that they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moec.execution.engine import EagerEngine, Engine
from moec.execution.generation import pad
from moec.program.decoder_signature import cache_inputs, present_name
from moec.proof.chosen_keys import key_choices
from moec.proof.decided_tokens import NOISE, look
from tests.execution.test_generation import built, prompts, reference, text, ties, varied
from tests.sparse_models import MODELS, build, source

FIRST = "deepseek_v32"


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == FIRST else [pytest.mark.repeats]) for n in MODELS])
def test_greedy_texts_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = varied(build(name), others=2.0, but=("lm_head", ".hc_", "_hc."))
    engine = built(model, "", tmp_path)
    ids, mask = pad(prompts(9, 4, 13))
    for rows in (slice(2, 3), slice(0, 3)):
        want, logits = reference(model, ids[rows], mask[rows])
        assert want.unique().numel() > 10
        assert ties(text(engine, ids[rows], mask[rows]), want, logits) <= 1


def in_two_calls(engine: Engine, ids: Tensor, late: int = 0) -> Tensor:
    """The logits of a text's end after a first call, its index off by so many tokens."""
    mask = torch.ones_like(ids)
    first = engine(input_ids=ids[:, :9], attention_mask=mask[:, :9])
    states = {c.name: first[present_name(c.name)] for c in cache_inputs(engine.inputs)}
    states = {name: value.roll(late, 1) if name.endswith("index_key") else value for name, value in states.items()}
    return engine(input_ids=ids[:, 9:], attention_mask=mask, **states)["logits"]


def test_the_keys_of_an_index_are_a_state_and_its_choice_is_looked_at_in_a_proof() -> None:
    found: Any = source(FIRST)
    program = found.capture()
    index = [i for i in cache_inputs(program.inputs) if i.name.endswith("index_key")]
    assert [i.shape for i in index] == [("batch", "past_sequence", 16)] * 2
    assert {present_name(i.name) for i in index} <= set(program.outputs) and not program.conditions
    assert len(key_choices(program)) == 2
    sample = found.sample({"batch": 2, "sequence": 12, "past_sequence": 0}, 3)
    sample["attention_mask"][:] = 1
    tokens, _ = look(program, sample, 1.0, causal=True)
    assert tokens.tokens[:, :6].all(), "six keys are all that there are"
    assert not tokens.tokens[:, 6:].any(), "with so much noise any other key may be chosen"
    assert look(program, sample, NOISE[torch.float32], causal=True)[0].count > 12
    ids = torch.randint(3, 90, (2, 17), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = build(FIRST)(input_ids=ids, use_cache=False).logits[:, 9:]
    torch.testing.assert_close(in_two_calls(EagerEngine(program), ids), want, atol=2e-5, rtol=1e-4)
    wrong = in_two_calls(EagerEngine(program), ids, late=1)
    assert not torch.allclose(wrong, want, atol=1e-2), "an index that is off by one token is seen"
