"""Inputs of models of each kind."""

from __future__ import annotations

import torch

from moec import open_source
from tests import zoo
from tests.huggingface.conftest import Saved


def test_causal_language_models(saved: Saved) -> None:
    source = open_source(str(saved("llama")))
    assert [(i.name, i.dtype, i.shape) for i in open_source(str(saved("llama")), cache=False).inputs] == [
        ("input_ids", torch.int64, ("batch", "sequence")),
        ("attention_mask", torch.int64, ("batch", "sequence")),
    ]
    assert [(i.name, i.shape) for i in source.inputs][:3] == [
        ("input_ids", ("batch", "sequence")), ("attention_mask", ("batch", "past_sequence + sequence")),
        ("past_key_values.0.key", ("batch", 2, "past_sequence", 8))]  # fmt: skip
    assert (source.domains["input_ids"].kind, source.domains["input_ids"].high) == ("token", zoo.VOCAB)


def test_bert_has_token_types(saved: Saved) -> None:
    source = open_source(str(saved("bert")))
    assert [i.name for i in source.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert source.domains["token_type_ids"].high == 2


def test_images_have_one_dynamic_dimension(saved: Saved) -> None:
    source = open_source(str(saved("vit")))
    assert [(i.name, i.dtype, i.shape) for i in source.inputs] == [
        ("pixel_values", torch.float32, ("batch", 3, 24, 24))
    ]
