"""What a text needs beside an engine, read from files by whichever source knows them: a tokenizer, and the model's own
limits and end tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from moec import registry
from moec.errors import MoecError
from moec.frontend.source import Source, Tokenizer
from moec.layouts.facts import ModelFacts
from moec.program.program import Input


def find_tokenizer(folder: Path, text: str, source: type[Source] | None = None) -> Tokenizer:
    """The tokenizer in an engine's folder, else with the model that the engine was made from.

    Args:
        folder: the engine's.
        text: the model as the user named it.
        source: the class of the model's source where it is open; it is asked first.

    Raises:
        MoecError: M204 when there is none, or it does not load.
    """
    for kind in _kinds(source):
        found = kind.read_tokenizer(folder, text)
        if found is not None:
            return found
    what = f"there is no tokenizer beside the engine or with its source {text!r}"
    if str(folder) == text:  # no engine, but a model as it was named
        what = f"there is no tokenizer with {text!r}"
    fix = f"put the model's tokenizer.json and tokenizer_config.json into {folder}, or give token ids: --tokens 1,2,3"
    raise MoecError("M204", what, str(folder), fix)


def find_facts(folder: Path, text: str, inputs: Sequence[Input]) -> ModelFacts:
    """Context, vocabulary and end tokens as the files in an engine's folder say, else those of the model; nothing but a
    name where there are none. Raises M204 when the files are broken."""
    found = (kind.read_facts(folder, text, inputs) for kind in _kinds(None))
    return next((facts for facts in found if facts is not None), ModelFacts(text))


def _kinds(first: type[Source] | None) -> Iterator[type[Source]]:
    if first is not None:
        yield first
    for name in registry.names("sources"):
        yield registry.find("sources", name)
