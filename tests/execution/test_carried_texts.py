"""Greedy texts of decoders with delta nets are transformers' own, alone and in a padded batch.

Of the other kinds of state: scans in `test_scanned_texts`, short convolutions in `tests/test_states.py`, keys of an
index in `tests/huggingface/test_sparse_attention.py`, MLA (`deepseek_v3`) and sliding windows (`gpt_oss`, `gemma2`) in
`test_generation`, an encoder's in `tests/compiler/test_parts.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.execution.generation import pad
from moec.program.decoder_signature import cache_inputs, layer_of
from tests.execution.test_generation import NEW, built, prompts, reference, text, ties, varied
from tests.zoo import build

FAMILIES = ("kimi_linear", pytest.param("qwen3_next", marks=pytest.mark.repeats))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_equals_transformers(family: str, tmp_path: Path) -> None:
    model = varied(build(family), others=2.0, but=("A_log", "lm_head", "conv1d"))
    engine = built(model, "", tmp_path)
    assert "recurrent_state" in {layer_of(c.name)[1] for c in cache_inputs(engine.inputs)}
    for batch in (prompts(9), prompts(5, 9, 13)):
        ids, mask = pad(batch)
        want, logits = reference(model, ids, mask)
        assert want.shape[1] == NEW and len(want.unique()) > 8, "a text of one word shows nothing"
        assert ties(text(engine, ids, mask), want, logits) <= 1
