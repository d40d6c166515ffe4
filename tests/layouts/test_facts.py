"""Names of models for servers and paths."""

from __future__ import annotations

import pytest

from moec.layouts.facts import model_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("mixtral/", "mixtral"),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("models/my model", "my-model"),
        ("nets/mlp.py:make", "make"),
        ("nets/a.pt2", "a"),
        ("MoeModel", "MoeModel"),
        (".", "model"),
        ("", "model"),
        ("a/…", "model"),
        ("a/.hidden", "hidden"),
    ],
)
def test_names_are_what_a_path_allows(source: str, name: str) -> None:
    assert model_name(source) == name
