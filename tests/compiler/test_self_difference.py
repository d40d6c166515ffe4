"""A model that differs from itself is refused with that reason, instead of an engine that seems wrong."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from moec.compiler.self_difference import explained_by_model
from moec.errors import MoecError
from moec.huggingface.source import HuggingFaceSource
from tests import whole_zoo, zoo
from tests.zoo import source

UNEQUAL = MoecError("M101", "the engine differs", "logits", "find the cause")


def changed(name: str, **changes: Any) -> HuggingFaceSource:
    config = whole_zoo.config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    model = getattr(transformers, config.architectures[0])(config)
    zoo.randomize(model, 0)
    return HuggingFaceSource.from_model(model.eval())


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("bamba", {"time_step_limit": (0.01, 0.05)}, "a text comes token by token than in one go"),
        ("jamba", {"mamba_proj_bias": True}, "padding stands before a text"),
    ],
)
def test_the_models_own_difference_is_the_reason(name: str, changes: dict[str, Any], said: str) -> None:
    """transformers limits Mamba-2's steps in a prompt alone, and writes a bias into the states before a text."""
    with pytest.raises(MoecError) as error, explained_by_model(changed(name, **changes)):
        raise UNEQUAL
    assert error.value.code == "M206" and said in error.value.what and "of its spread" in error.value.what
    assert UNEQUAL.what in error.value.what, "it may be a fault of the engine as well"
    assert "--no-cache" in error.value.fix


def test_a_router_that_mixes_tokens_is_the_reason() -> None:
    """Doge's retrieval of experts folds a batch's tokens into each other, as its source says."""
    doge = HuggingFaceSource.from_model(whole_zoo.build("doge"))
    with pytest.raises(MoecError) as error, explained_by_model(doge):
        raise UNEQUAL
    assert error.value.code == "M206" and "what stands in padding" in error.value.what
    assert UNEQUAL.what in error.value.what, "it may be a fault of the engine as well"


@pytest.mark.parametrize("name", ["mixtral", "bert"])
@pytest.mark.parametrize("raised", [UNEQUAL, MoecError("M104", "not reached", "experts", "try others")])
def test_another_models_error_stays_as_it_is(name: str, raised: MoecError) -> None:
    with pytest.raises(MoecError) as error, explained_by_model(source(name)):
        raise raised
    assert error.value is raised
