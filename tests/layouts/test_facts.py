"""Names of models for servers and paths."""

from __future__ import annotations

import pytest

from moec.layouts.facts import ModelFacts, model_name
from moec.program.conditions import Assumptions, Condition


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("mixtral/", "mixtral"),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("models/my model", "my-model"),
        ("nets/mlp.py:make", "make"),
        ("nets/a.pt2", "a"),
        ("files/Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B-Q8_0"),
        ("MoeModel", "MoeModel"),
        (".", "model"),
        ("", "model"),
        ("a/…", "model"),
        ("a/.hidden", "hidden"),
    ],
)
def test_names_are_what_a_path_allows(source: str, name: str) -> None:
    assert model_name(source) == name


@pytest.mark.parametrize(("texts", "context"), [
    ((), 512), (("past_sequence + sequence <= 64",), 64), (("sequence <= 900",), 512), (("frames >= 7",), 512),
    (("sequence <= 64", "sequence <= 48"), 48),
])  # fmt: skip
def test_a_context_is_no_longer_than_the_conditions_allow(texts: tuple[str, ...], context: int) -> None:
    assumed = Assumptions(tuple(map(Condition, texts)))
    facts = ModelFacts("a", context=512).assuming(assumed)
    assert facts.context == context and facts.assumes == assumed
