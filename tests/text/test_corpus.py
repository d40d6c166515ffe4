"""Texts become windows that cover every token once; files of tokens are taken as they are; bad ones are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from moec.errors import MoecError
from moec.text.corpus import Corpus, read_corpus
from tests.byte_tokenizer import write_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("bytes"))


def with_start(folder: Path) -> Path:
    """The same tokenizer, putting its start token before every text."""
    from tokenizers import Tokenizer, processors

    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path))
    return folder


def test_a_text_is_its_tokenizers_tokens(folder: Path, tmp_path: Path) -> None:
    from moec.text.tokenizer import find_tokenizer

    file = tmp_path / "text.txt"
    file.write_text(TEXT * 3)
    corpus = read_corpus(file, folder, "nothing", 96)
    assert corpus.tokens.tolist() == find_tokenizer(folder, "").encode_prompt(TEXT * 3) and corpus.start == ()
    assert (corpus.name, corpus.sha256) == (str(file), hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.mark.parametrize(("length", "batch", "limit"), [(7, 4, 0), (10, 3, 0), (50, 4, 0), (7, 2, 20), (500, 4, 0)])
def test_windows_hold_every_token_once(length: int, batch: int, limit: int) -> None:
    tokens = torch.arange(1, 101)
    pieces = list(Corpus("t", "", tokens).windows(length, limit, batch))
    assert all(p.shape[0] <= batch and p.shape[1] <= length for p in pieces)
    flat = torch.cat([p.flatten() for p in pieces])
    lost = (limit or 100) - len(flat)
    assert torch.equal(flat, tokens[: len(flat)]) and lost == int(
        (limit or 100) % length == 1
    )  # one token alone predicts nothing


def test_every_window_begins_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    corpus = read_corpus(file, with_start(write_tokenizer(tmp_path)), "nothing")
    pieces = list(corpus.windows(10))
    assert corpus.start == (1,) and 1 not in corpus.tokens and all((p[:, 0] == 1).all() for p in pieces)
    assert torch.equal(torch.cat([p[:, 1:].flatten() for p in pieces]), corpus.tokens) and pieces[0].shape == (4, 10)


def test_files_of_tokens(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    np.save(tmp_path / "a.npy", ids)
    np.savez(tmp_path / "b.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    save_file({"anything": ids}, tmp_path / "c.safetensors")
    for name in ("a.npy", "b.npz", "c.safetensors"):
        corpus = read_corpus(tmp_path / name, tmp_path / "none", "nothing", 12)
        assert corpus.tokens.tolist() == list(range(12)) and corpus.tokens.dtype == torch.int64 and corpus.start == ()


@pytest.mark.parametrize(
    ("name", "content", "says", "code"),
    [
        ("gone.txt", None, "cannot be read", "M211"),
        ("empty.txt", b"", "0 tokens", "M211"),
        ("one.txt", b"a", "1 tokens", "M211"),
        ("latin.txt", b"caf\xe9 au lait", "not UTF-8", "M211"),
        ("broken.npy", b"nothing of numpy", "cannot be read", "M211"),
        ("floats.npy", np.ones(4), "float64", "M211"),
        ("high.npy", np.array([3, 96, 4]), "no token 96", "M211"),
        ("low.npy", np.array([3, -1]), "no token -1", "M211"),
        ("two.npz", {"a": np.ones(3), "b": np.ones(3)}, "input_ids", "M211"),
    ],
)
def test_what_is_not_a_text_is_refused(
    name: str, content: Any, says: str, code: str, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(file, **content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(MoecError, match=says) as caught:
        read_corpus(file, folder, "nothing", 96)
    assert caught.value.code == code


def test_without_a_tokenizer_the_way_out_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(MoecError, match="no tokenizer") as caught:
        read_corpus(tmp_path / "text.txt", tmp_path, "nothing")
    assert caught.value.code == "M204" and ".npy" in caught.value.fix
