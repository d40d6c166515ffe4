"""Pieces of text join to the text of all tokens; a folder's tokenizer and limits are used; records count what
happened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import moec
from moec.errors import MoecError
from moec.execution.generation import Sampling, generate
from moec.text.tokenizer import find_tokenizer
from moec.text.writer import TextStream, Writer, Written
from tests.byte_tokenizer import write_tokenizer

TEXT = "naïve café: 漢字 and 🙂🙂, \u200d done"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return find_tokenizer(write_tokenizer(tmp_path_factory.mktemp("bytes"), 300), "nothing")


@pytest.fixture(scope="module")
def folder(mixtral_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Mixtral engine with a tokenizer beside it."""
    return write_tokenizer(Path(shutil.copytree(mixtral_engine, tmp_path_factory.mktemp("text") / "engine")))


@pytest.fixture(scope="module")
def writer(folder: Path) -> Writer:
    return Writer(moec.load(folder), folder, "nowhere")


def pieces(decode: Any, tokens: list[int], earlier: tuple[int, ...] = ()) -> list[str]:
    stream = TextStream(decode, earlier)
    return [*map(stream.add, tokens), stream.end()]


def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer: Any) -> None:
    tokens = tokenizer.encode_prompt(TEXT)
    found = pieces(tokenizer.decode, tokens)
    assert "".join(found) == TEXT and len(tokens) > len(TEXT) + 10
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found) and sum(map(bool, found)) == len(TEXT)
    naive = "".join(tokenizer.decode([t]) for t in tokens)
    assert naive != TEXT  # the mutant: tokens decoded one by one


def test_a_character_that_never_ends_is_shown_at_the_end(tokenizer: Any) -> None:
    tokens = tokenizer.encode_prompt("a🙂")[:-1]
    found = pieces(tokenizer.decode, tokens)
    assert found[0] == "a" and not any(found[1:-1]) and found[-1] == tokenizer.decode(tokens)[1:]


def test_what_earlier_tokens_do_to_the_next_is_kept() -> None:
    words = ["def", "quick", "sort"]

    def decode(tokens: list[int]) -> str:  # as sentencepiece: a space before every word but the first
        return " ".join(words[t] for t in tokens)

    assert pieces(decode, [1, 2], earlier=(0,)) == [" quick", " sort", ""] and pieces(decode, [1, 2]) == [
        "quick",
        " sort",
        "",
    ]


def test_a_prompt_is_continued(writer: Writer, folder: Path) -> None:
    written, parts = writer.write("def quick(", max_tokens=12)
    shown = list(parts)
    tokenizer, engine = find_tokenizer(folder, ""), moec.load(folder)
    ids = torch.tensor([tokenizer.encode_prompt("def quick(")])
    want = [int(t) for t in generate(engine, ids, max_tokens=12, eos=[2])]
    assert written.prompt == ids[0].tolist() and written.tokens == want and len(written.seconds) == len(want)
    assert "".join(shown) == written.text == tokenizer.decode(want)
    assert list(writer.write("def slow(", max_tokens=12)[1]) != shown


def test_how_a_text_stops(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(prompt: Any, **options: Any) -> Written:
        written, parts = writer.write(prompt, **options)
        list(parts)
        return written

    assert stopped([5, 6], max_tokens=3).stopped == "max_tokens"
    long = stopped([5] * (writer.facts.context - 4), max_tokens=50, sampling=Sampling(1.0, seed=1))
    assert writer.facts.context == 256 and (len(long.tokens), long.stopped) == (4, "context")
    drawn = [stopped([5, 6], max_tokens=200, sampling=Sampling(2.0, seed=s)) for s in range(6)]
    ended = [w for w in drawn if w.stopped == "end"]
    assert ended and all(w.tokens[-1] == 2 and 2 not in w.tokens[:-1] and "</s>" not in w.text for w in ended)


def test_tokens_need_no_tokenizer(mixtral_engine: Path) -> None:
    writer = Writer(moec.load(mixtral_engine), mixtral_engine, "nowhere")
    written, parts = writer.write([5, 6, 7], max_tokens=3)
    assert "".join(parts) == "".join(f"{t} " for t in written.tokens) and written.text == ""
    with pytest.raises(MoecError) as error:
        writer.write("text")
    assert error.value.code == "M204" and "--tokens" in error.value.fix


@pytest.mark.parametrize(
    ("prompt", "what"),
    [("", "the prompt has no tokens"), ([5, 96], "no token has the number 96"), ([-1], "no token has the number -1")],
)
def test_prompts_that_are_none(writer: Writer, prompt: Any, what: str) -> None:
    with pytest.raises(MoecError) as error:
        writer.write(prompt)
    assert error.value.code == ("M214" if prompt else "M211") and error.value.what == what


def test_figures_of_a_record() -> None:
    written = Written([1, 2, 3, 4], [5, 6, 7], "abc", [0.5, 0.1, 0.3], "end")
    assert written.prefill_tokens_per_s == 8 and written.decode_tokens_per_s == pytest.approx(5)
    assert json.loads(json.dumps(written.to_dict()))["timings"]["first_token_ms"] == 500
    assert (
        str(written)
        == "4 + 3 tokens, stopped at end; prefill 8.0 tokens/s (first token after 500.0 ms), decode 5.0 tokens/s"
    )
    assert Written([1], [5], "a", [0.5]).decode_tokens_per_s is None
