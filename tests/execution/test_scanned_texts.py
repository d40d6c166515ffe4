"""Greedy texts of decoders with scans are transformers' own, alone and in a padded batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moec.execution.generation import pad
from tests.execution.test_generation import built, prompts, reference, text, ties, varied
from tests.scanning_models import scanning_model

OFTEN = "granite"
FAMILIES = (OFTEN, *(pytest.param(f, marks=pytest.mark.repeats) for f in ("jamba", "nemotron", "minimax")))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_equals_transformers(family: str, tmp_path: Path) -> None:
    model = varied(scanning_model(family), embedding=0.3, others=2.0, but=("A_log", "lm_head"))
    engine = built(model, "", tmp_path)
    alone = torch.tensor(prompts(9))
    want, logits = reference(model, alone, torch.ones_like(alone))
    assert len(want.unique()) > 8, "a text of one word shows nothing"
    assert ties(text(engine, alone), want, logits) == 0
    ids, mask = pad(prompts(5, 9, 13))
    want, logits = reference(model, ids, mask)
    assert ties(text(engine, ids, mask), want, logits) == 0
