"""The part that reads and writes text."""

from __future__ import annotations

from pathlib import Path

import pytest

from moec.huggingface.reading.bare import bare_model
from moec.huggingface.reading.described import layers_to_see
from moec.huggingface.reading.text_part import layers_of, text_part
from tests.planning import configs, published
from tests.zoo import build


@pytest.mark.parametrize("name", ["mixtral", "llama", "gpt2", "bert"])
def test_a_model_for_text_is_that_as_a_whole(name: str) -> None:
    assert text_part(build(name)) == ""


def test_layers_of_what_sees_are_no_layers_of_the_decoder(tmp_path: Path) -> None:
    path = configs.write(tmp_path, published.QWEN3_5)
    model = bare_model(str(path))
    assert text_part(model) == "model.language_model."
    assert [number for number, _ in layers_of(model)] == list(range(40))
    assert layers_to_see(model) == (4, 40)
