"""Whoever knows the files beside an engine reads its tokenizer and limits; an open model's own source comes first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.frontend.module_source import ModuleSource
from moec.layouts import ModelFacts
from moec.text.tokenizer import find_facts, find_tokenizer
from tests.byte_tokenizer import write_tokenizer


class Words:
    """A tokenizer of three words."""

    start = (0,)

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def encode_prompt(self, text: str) -> list[int]:
        return [0, *self.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join("x" * token for token in tokens)


class WordSource(ModuleSource):
    """A source with a tokenizer of its own."""

    @classmethod
    def read_tokenizer(cls, folder: Path, text: str) -> Words | None:
        return Words() if text == "words" else None


def test_a_byte_tokenizer_is_found_in_the_folder_whatever_the_source(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    for source in ("nowhere", "model.py:build", "model.pt2"):
        tokenizer = find_tokenizer(tmp_path, source)
        assert tokenizer.decode(tokenizer.encode("def quick(")) == "def quick("


def test_the_class_of_an_open_source_is_asked_first(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert find_tokenizer(tmp_path, "words", WordSource).encode("a bcd") == [1, 3]
    assert find_tokenizer(tmp_path, "other", WordSource).encode("a bcd") != [1, 3]


def test_without_one_the_fix_names_the_files_and_the_way_around(tmp_path: Path) -> None:
    for source in ("nobody/such-model", "LlamaForCausalLM", "model.py:build", str(tmp_path)):
        with pytest.raises(MoecError) as error:
            find_tokenizer(tmp_path, source)
        assert error.value.code == "M204" and "--tokens 1,2,3" in error.value.fix and source in error.value.what
        assert ("engine" in error.value.what) == (source != str(tmp_path))  # a model as it was named is none


def test_limits_are_the_files_and_without_files_there_are_none(mixtral: Path, tmp_path: Path) -> None:
    assert (find_facts(mixtral, "nowhere", ()).context, find_facts(mixtral, "nowhere", ()).eos) == (256, (2,))
    assert find_facts(tmp_path, "nowhere", ()) == ModelFacts("nowhere")
