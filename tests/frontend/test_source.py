"""What a source has beside its program: samples that a seed gives again, and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moec.errors import MoecError
from moec.frontend.source import Opening, Source
from moec.layouts.facts import ModelFacts
from moec.progress import Progress
from tests.moe_module import VOCAB, MoeModel, source_of

SIZES = {"batch": 4, "sequence": 9}


def test_equal_seeds_give_equal_samples() -> None:
    source = source_of(MoeModel())
    first, again, other = (source.sample(SIZES, s)["input_ids"] for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (4, 9) and int(first.max()) < VOCAB


def test_a_source_with_nothing_beside_it_says_so(tmp_path: Path) -> None:
    source = source_of(MoeModel())
    assert source.facts() == ModelFacts(source.text) and source.read_facts(tmp_path, "any", ()) is None
    assert source.read_tokenizer(tmp_path, "any") is None and not Source.opens("any", Opening())
    source.write_companions(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(MoecError, match="only a model of the transformers library") as caught:
        source.save_checkpoint(source.capture(), tmp_path / "saved", "gptq", Progress())
    assert caught.value.code == "M206" and not (tmp_path / "saved").exists()
