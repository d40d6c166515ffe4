"""A window that never moves off the prompt (Unlimited-OCR): where the prompt ends is a state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moec.execution.engine import EagerEngine, Engine
from moec.execution.generation import pad
from moec.huggingface.source import HuggingFaceSource
from moec.program.decoder_signature import MASK, cache_inputs, present_name, told_prompt
from moec.program.program import Input
from moec.proof.cache_consistency import check_consistency, text_past
from moec.proof.compare import Tolerance, compare
from tests import whole_zoo
from tests.changed import Changed
from tests.execution.test_generation import NEW, built, prompts, reference, text, ties, varied

STATE, WINDOW = "past_key_values.0.prompt_length", 4


def model() -> Any:
    found = whole_zoo.build("unlimited_ocr")
    found.config.text_config.sliding_window = WINDOW
    return varied(found, others=2.0)


@pytest.fixture(scope="module")
def source() -> HuggingFaceSource:
    return HuggingFaceSource.from_model(model(), leave_out=["pixel_values*"])


@pytest.fixture(scope="module")
def engine(source: HuggingFaceSource) -> Engine:
    return EagerEngine(source.capture())


def test_one_layer_tells_it_for_all(source: HuggingFaceSource) -> None:
    caches = cache_inputs(source.inputs)
    assert [c for c in caches if c.dtype == torch.int64] == [Input(STATE, torch.int64, ("batch",))]
    assert len(caches) == 5 and told_prompt(source.inputs, 2, 7)[STATE].tolist() == [7, 7]


@pytest.mark.parametrize("past", [0, 9])
def test_equals_transformers_own_layers_for_any_length(source: HuggingFaceSource, engine: Engine, past: int) -> None:
    """Texts whose prompts are not known yet, are over, are not over, and end within the call; with padding."""
    sample = source.sample({"batch": 5, "sequence": 6, "past_sequence": past}, 3)
    sample[STATE] = torch.tensor([0, 2, 5, 12, 30])
    assert compare(source.reference(), engine, [sample], Tolerance(1e-4)).ok
    assert engine(**sample)[present_name(STATE)].tolist() == [past + 6, 2, 5, 12, 30]
    if past:  # what the length is, makes a difference
        others = Changed(engine, lambda given: given | {STATE: torch.full((5,), 15)})
        assert not compare(source.reference(), others, [sample], Tolerance(1e-2)).ok


def test_a_text_in_pieces_is_one_text_where_the_length_is_told(source: HuggingFaceSource, engine: Engine) -> None:
    long = text_past(9, 16)
    sample = source.sample({**long.sizes, "past_sequence": 0}, 5)
    sample[MASK][:] = 1
    assert check_consistency(engine, sample, Tolerance(1e-3), text=long).ok

    def forgets(given: dict[str, Tensor]) -> dict[str, Tensor]:
        late = given["past_key_values.0.key"].shape[2] > 0
        return given | {STATE: torch.zeros_like(given[STATE])} if late else given

    assert not check_consistency(Changed(engine, forgets), sample, Tolerance(1e-3), text=long).ok


@pytest.mark.slow
def test_texts_are_transformers_own_past_the_window(tmp_path: Path) -> None:
    """Alone and in a padded batch."""
    own = model()
    found = built(HuggingFaceSource.from_model(own, leave_out=["pixel_values*"]), "", tmp_path)
    for batch in (prompts(9), prompts(5, 9, 13)):
        ids, mask = pad(batch)
        want, logits = reference(own, ids, mask)
        assert want.shape[1] == NEW and len(want.unique()) > 8
        assert ties(text(found, ids, mask), want, logits) == 0
