"""A model whose padding reaches its tokens is refused with that reason, instead of an engine that seems wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

import moec
from moec.compiler.padding import padding_explains
from moec.errors import MoecError
from moec.huggingface.source import HuggingFaceSource
from tests import whole_zoo
from tests.zoo import source

UNEQUAL = MoecError("M101", "the engine differs", "logits", "find the cause")


def test_a_router_that_mixes_tokens_is_the_reason() -> None:
    """Doge's retrieval of experts folds a batch's tokens into each other, as its source says."""
    doge = HuggingFaceSource.from_model(whole_zoo.build("doge"))
    with pytest.raises(MoecError) as error, padding_explains(doge):
        raise UNEQUAL
    assert error.value.code == "M206" and "what stands in padding" in error.value.what
    assert UNEQUAL.what in error.value.what, "it may be a fault of the engine as well"


@pytest.mark.parametrize("raised", [UNEQUAL, MoecError("M104", "not reached", "experts", "try others")])
def test_another_models_error_stays_as_it_is(raised: MoecError) -> None:
    with pytest.raises(MoecError) as error, padding_explains(source("mixtral")):
        raise raised
    assert error.value is raised


def test_of_a_model_with_other_sizes_nothing_is_said(translator: Path) -> None:
    """An encoder-decoder as one graph has texts of two lengths."""
    with pytest.raises(MoecError) as error, padding_explains(moec.open_source(str(translator), cache=False)):
        raise UNEQUAL
    assert error.value is UNEQUAL


@pytest.mark.repeats
def test_doge_is_refused_when_it_is_compiled(tmp_path: object) -> None:
    with pytest.raises(MoecError, match="what stands in padding"):
        moec.compile(whole_zoo.build("doge"), out=f"{tmp_path}/engine")
