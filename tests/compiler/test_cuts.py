"""A model that differs from itself when its text is cut, or padded, is refused with that reason."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from moec.compiler.cuts import cuts_explain
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
    with pytest.raises(MoecError) as error, cuts_explain(changed(name, **changes)):
        raise UNEQUAL
    assert error.value.code == "M206" and said in error.value.what and "of its spread" in error.value.what
    assert UNEQUAL.what in error.value.what, "it may be a fault of the engine as well"
    assert "--no-cache" in error.value.fix


@pytest.mark.parametrize("name", ["mixtral", "bert"])
def test_another_models_error_stays_as_it_is(name: str) -> None:
    with pytest.raises(MoecError) as error, cuts_explain(source(name)):
        raise UNEQUAL
    assert error.value is UNEQUAL
